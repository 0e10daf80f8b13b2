#!/bin/sh
# Takes out of an image's packages what nothing in it runs, then compiles the rest: trim.sh cpu|cuda
#
# Its root is read-only, so that what is not compiled here is compiled at each start: models of transformers that are
# never imported need not be.
set -eu
cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
rm -rf torch/test
find torch/bin -type f ! -name torch_shm_manager -delete
find numpy sympy networkx -type d -name tests -prune -exec rm -rf {} +
# A GPU's kernels may be compiled with torch's headers; without a compiler nothing is.
[ "$1" = cuda ] || rm -rf torch/include
# Packages may have files for other versions of Python, which fail.
python -m compileall -qq -j 0 -x '/(pip|networkx|transformers/models/(?!auto/|deepseek))' . || true
