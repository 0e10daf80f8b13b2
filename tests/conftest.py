"""Options of the whole test suite."""

import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from PIL import Image

# A test's time depends on what else the machine does; pytest-timeout bounds it.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


def pytest_addoption(parser):
    parser.addoption(
        "--evaluation-set",
        type=Path,
        help="folder of a set as `python -m trainer evaluate --data` takes it: tests of exactness read all of it",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="tests/chaos: as many cases as docs/reliability.md says, which takes minutes each, instead of a few",
    )
    parser.addoption("--share", type=float, default=1.0, help="with --long: only this share of the cases, such as 0.1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Slow files come first, then those with most tests, so that processes side by side end at about the same time."""
    counts = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -counts[item.path]))


@pytest.fixture(autouse=True)
def pillows_limit_stays(monkeypatch):
    """What decodes uploads lowers Pillow's limit for its whole process; here tests of all kinds share one."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Give torch back its number of threads: a command that runs in process sets it for all tests that follow.

    On two cores, two processes with two threads each make small operations ten to twenty times slower, as threads spin
    while they wait.
    """
    torch = sys.modules.get("torch")  # many files never import it
    before = torch.get_num_threads() if torch else 0
    result = yield
    if torch:
        torch.set_num_threads(before)
    return result
