"""Options of the whole test suite."""

from pathlib import Path


def pytest_addoption(parser):
    parser.addoption(
        "--evaluation-set",
        type=Path,
        help="folder of a set as `python -m trainer evaluate --data` takes it: tests of exactness read all of it",
    )
