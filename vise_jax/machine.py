"""Resources of this machine: the CPUs that the process may use, and its memory."""

import ctypes
import math
import os
from pathlib import Path


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of CPUs that this process may use, at least 1.

    It is the smallest of the CPU affinity and the CPU quotas of the control group (version 2 or 1) and of the groups
    above it, rounded up.

    Args:
        cgroup: where control groups are mounted.
        own: file that names the control group of the process, below `cgroup`.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, *map(_quota, _groups(cgroup, own)))))


def _groups(cgroup: Path, own: Path) -> list[Path]:
    """Return the directories of the control group of version 2 and of all groups above it, and the mount."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return [cgroup]
    names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    group = cgroup / (names[0] if names and ".." not in names[0].split("/") else "")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(cgroup))]


def _quota(cgroup: Path) -> float:
    """Return the CPU quota in CPUs; infinity without one."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


# Parameters of glibc's mallopt, with the largest block that is not a mapping of its own (32 MiB is the most it takes),
# the free memory at an arena's end that is kept, and what an arena grows by.
_MALLOC = {-3: 32 << 20, -1: 1 << 30, -2: 64 << 20}


def keep_freed_memory() -> None:
    """Keep freed memory in the process where the C library is glibc.

    By default blocks as large as an image go back to the kernel, which clears each page of them when they are next
    used. docs/performance.md has what that costs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)
