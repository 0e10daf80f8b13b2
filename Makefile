# One door for people, hooks and CI. `make` alone lists the targets.
#
#   PYTHON     the interpreter that makes .venv (3.11 or newer)
#   VENV       the folder of the virtual environment; DOCS_VENV and RAY_VENV those of `make docs` and `make ray-env`
#   PIP_ARGS   more arguments for pip, e.g. another package index for another build of torch
#   ARGS       more arguments for the command a target runs

PYTHON ?= python3
VENV ?= .venv
DOCS_VENV ?= .venv-docs
RAY_VENV ?= .venv-ray
PIP_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What `make serve` needs: all of it where that is installed already.
SERVICE := $(or $(wildcard $(STAMP)),$(VENV)/.service)
PACKAGES := service trainer shared
SOURCES := $(wildcard service trainer shared tests benchmarks)
YAML := docker-compose.yml deploy
# Where keys could be left by mistake; digests of weights and results are all over the rest.
READABLE := '*.py' '*.js' '*.md' '*.sh' '*.toml' '*.yml' '*.yaml' '.env.example' 'Dockerfile*' Makefile
LOCKED := service trainer
# A test process for each core and one more, as they often wait; four at most: each holds torch and a model. Tests of a file
# stay together, as they share what it takes time to make; tests/conftest.py says which file comes first.
PROCESSES = $(shell echo $$(($$(nproc 2>/dev/null || echo 1) + 1)))
SIDE_BY_SIDE := --numprocesses $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup serve compiled test check docs ray-env audit sbom format lock test-gpu e2e chaos fuzz bench clean \
	demo-loop deepseek-ocr-smoke deepseek-ocr-train deepseek-ocr-eval

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) compiled ## Make .venv and install the pinned packages and this project

# The lock file names torch, so no other package can bring in a torch of its own choice.
$(STAMP): pyproject.toml deploy/env/dev.txt | $(BIN)/python
	@echo "Installing $$(grep -c == deploy/env/dev.txt) packages into $(VENV). This takes some minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r deploy/env/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Installed."

# The packages of the API's image; `make setup` adds the others to them. Python compiles those that it imports.
$(VENV)/.service: pyproject.toml deploy/env/service.txt | $(BIN)/python
	@echo "Installing $$(grep -c == deploy/env/service.txt) packages into $(VENV). This takes some minutes, once."
	PATH="$(abspath $(BIN)):$$PATH" PIP_ARGS="$(PIP_ARGS)" sh deploy/env/install.sh service cpu --quiet --no-compile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Installed."

# Optional: where no C compiler is found, or the processor gains nothing, there is none.
compiled: | $(BIN)/python ## Compile what nano has in C, where this processor gains from it
	@$(BIN)/python service/engine/cpu/step_library.py --where-useful

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }

serve: $(SERVICE) compiled ## Start the API on DEEPSYNTH_HOST:DEEPSYNTH_PORT (127.0.0.1:8000); it prints how to try it
	@exec $(BIN)/python -m service serve $(ARGS)

test: setup ## Run every test that needs neither a GPU nor anything outside Python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

e2e: setup ## Run the tests that start servers, build images and need Debian packages
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m e2e --timeout=900 $(SIDE_BY_SIDE) $(or $(ARGS),tests/e2e)

test-gpu: setup ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu --timeout=600 $(ARGS)

bench: setup ## Run the benchmark programs that need no GPU
	$(BIN)/python -m pytest -m bench --timeout=600 $(ARGS)

chaos: setup ## Run the long form of each proof of docs/reliability.md, which takes two to three hours
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/chaos -m "" --long $(ARGS)

fuzz: setup ## Fuzz the intake, guided by coverage: make fuzz ARGS="form -max_total_time=1800"
	$(BIN)/python tests/chaos/fuzz_intake.py $(ARGS)

check: setup ## Formatting, lint, types, import rules, docstrings, deployment files, secrets
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint --quiet $(PACKAGES)
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(PACKAGES)
	git ls-files -- $(READABLE) | xargs -P 4 -n 200 $(BIN)/detect-secrets-hook \
		--disable-plugin HexHighEntropyString --exclude-lines 'api_key="none"'
	$(BIN)/yamllint --strict $(YAML)
	@if [ -x $(BIN)/hadolint ]; then echo "hadolint Dockerfile.api Dockerfile.train"; \
		$(BIN)/hadolint Dockerfile.api Dockerfile.train; else echo "hadolint is not built for this platform: skipped"; fi

docs: $(DOCS_VENV)/.installed ## Build the documents as a site in build/site; a broken link or a page without a place fails
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --config-file deploy/site/mkdocs.yml

$(DOCS_VENV)/.installed: deploy/env/docs.txt
	@[ -x $(DOCS_VENV)/bin/python ] || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r deploy/env/docs.txt
	@touch $@

ray-env: $(RAY_VENV)/.installed ## Make .venv-ray: the packages of .venv, and Ray with what it needs, for the tests on a cluster

# The packages of .venv are found through a .pth file; pins that both locks have agree, so they need not be installed twice.
$(RAY_VENV)/.installed: $(STAMP) deploy/env/ray.txt
	@[ -x $(RAY_VENV)/bin/python ] || $(PYTHON) -m venv $(RAY_VENV)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(RAY_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	@grep -ohE '^[A-Za-z0-9._-]+==[^ ]+' deploy/env/dev.txt | sort > $(RAY_VENV)/has.txt
	@grep -ohE '^[A-Za-z0-9._-]+==[^ ]+' deploy/env/ray.txt | sort | comm -23 - $(RAY_VENV)/has.txt > $(RAY_VENV)/wants.txt
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(PIP_ARGS) -r $(RAY_VENV)/wants.txt
	@touch $@

audit: setup ## Look up the pinned packages in PyPI's database of vulnerabilities, which not every mirror has
	@for name in $(LOCKED); do echo "pip-audit deploy/env/$$name.txt"; \
		$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement deploy/env/$$name.txt || exit 1; done

sbom: setup ## Write CycloneDX bills of materials of both images' packages to dist/
	@mkdir -p dist
	@for name in $(LOCKED); do echo "dist/sbom-$$name.cdx.json"; \
		$(BIN)/cyclonedx-py requirements deploy/env/$$name.txt --pyproject pyproject.toml --mc-type application \
			--output-reproducible --of JSON --output-file dist/sbom-$$name.cdx.json || exit 1; done

format: setup ## Format the code and mend what the linter can mend
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: ## Write deploy/env/*.txt from pyproject.toml
	PYTHON=$(PYTHON) PIP_ARGS="$(PIP_ARGS)" deploy/env/lock.sh

demo-loop: setup ## Serve nano, train an adapter on a small domain, publish it, and see the served error rate fall
	@$(BIN)/python benchmarks/demo_loop.py $(ARGS)

deepseek-ocr-smoke: setup ## Prepare, train, evaluate and publish an adapter for nano, on a CPU in minutes
	$(BIN)/python -m trainer smoke $(ARGS)

deepseek-ocr-train: setup ## Train an adapter: make deepseek-ocr-train ARGS="--dataset-name sets/scans ..."
	$(BIN)/python -m trainer train $(ARGS)

deepseek-ocr-eval: setup ## Measure error rates: make deepseek-ocr-eval ARGS="--adapter runs/adapter --data sets/scans"
	$(BIN)/python -m trainer evaluate $(ARGS)

clean: ## Remove the virtual environment and every cache
	rm -rf $(VENV) $(DOCS_VENV) $(RAY_VENV) service/engine/cpu/*.so build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis .coverage
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
