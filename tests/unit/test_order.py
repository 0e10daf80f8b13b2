"""In which order files of tests start: `tests/conftest.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SLOW = "import pytest\n@pytest.mark.slow\ndef test_slow(): ...\n"


def test_slow_files_come_first_then_those_with_most_tests(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers =\n  slow\n  other\naddopts = -m 'not other'\n")
    left_out = "".join(f"@pytest.mark.other\ndef test_{number}(): ...\n" for number in range(5))
    pytester.makepyfile(
        test_a="def test_a(): ...\n",
        test_b="def test_b(): ...\ndef test_c(): ...\n",
        test_d=f"import pytest\n{left_out}def test_d(): ...\n",
        test_e=SLOW,
    )
    listed = pytester.runpytest_subprocess("--collect-only", "-q", "-p", "no:xdist", "-p", "no:schemathesis").outlines
    expected = [
        "test_e.py::test_slow",
        "test_b.py::test_b",
        "test_b.py::test_c",
        "test_a.py::test_a",
        "test_d.py::test_d",
    ]
    assert [line for line in listed if "::" in line] == expected
