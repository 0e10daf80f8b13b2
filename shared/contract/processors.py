"""How many processors this process may use: its affinity and its cgroup's quota, not the machine's number.

A container limited to 2 of 64 processors sees 64; threads for all of them then wait for each other's turn. Linux has
the quota in files of the control group and its parents, in version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`); other
systems have none.

Source: cgroups(7), and the kernel's `Documentation/admin-guide/cgroup-v2.rst`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_processors(root: Path = ROOT) -> int:
    """Processors that this process may keep busy.

    Args:
        root: Folder in which `proc` and `sys` are.

    Returns:
        The smaller of affinity and quota, rounded down, at least 1.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([processors, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Quotas, in processors, of this process's control groups and all groups above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            yield from _of_groups(root / "sys/fs/cgroup", path, _version_2)
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                yield from _of_groups(root / "sys/fs/cgroup" / mount, path, _version_1)


def _of_groups(mount: Path, path: str, quota_of: Callable[[Path], float | None]) -> Iterator[float]:
    # Within a container the path may be the host's; the group is then at the mount itself.
    names = PurePosixPath(path).parts[1:]
    for depth in range(len(names), -1, -1):
        quota = quota_of(mount.joinpath(*names[:depth]))
        if quota is not None:
            yield quota


def _version_2(group: Path) -> float | None:
    words = _words(group / "cpu.max")
    return _share(words[0], words[1]) if len(words) == 2 else None


def _version_1(group: Path) -> float | None:
    quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    return _share(quota[0], period[0]) if quota and period else None


def _share(quota: str, period: str) -> float | None:
    """Time over period; None where there is no limit (`max`, or -1)."""
    if not quota.isdigit() or not period.isdigit() or int(quota) < 1 or int(period) < 1:
        return None
    return int(quota) / int(period)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
