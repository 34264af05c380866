"""How much main memory this process may still take.

The machine's free memory is only one of the limits. A container, a batch job or a shared server
gives a process less, and kills it when it takes more. Linux says so in files (control groups,
versions 1 and 2), and ``ulimit -v`` in a limit on the address space.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None

NO_LIMIT = 1 << 60
"""Limits of a group from here on are none (version 1 has no other word for it)."""


class FreeMemory(NamedTuple):
    """Memory that is free, in bytes, and what limits it: "this machine", …"""

    bytes: int
    limited_by: str


def free_memory() -> FreeMemory:
    """What this process may still take: the smallest of what the machine has free, of what is left
    below the limits of its control groups, and of its address space.
    """
    limits = [FreeMemory(psutil.virtual_memory().available, "this machine")]
    group, address_space = free_in_groups(), free_address_space()
    if group is not None:
        limits.append(FreeMemory(group, "the memory limit of this container or job (cgroup)"))
    if address_space is not None:
        limits.append(FreeMemory(address_space, "the limit on the address space (ulimit -v)"))
    return min(limits, key=lambda limit: limit.bytes)


def free_address_space() -> int | None:
    """Bytes left below the soft limit on the address space; None where there is no limit."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    return max(0, soft - psutil.Process().memory_info().vms)


def free_in_groups(
    process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes left below the memory limits of this process' control groups and of those that they are
    in; None where there is no limit.

    Args:
        process: the file that says which groups the process is in: a line
            ``number:controllers:path`` each. Version 2 has the number 0 and no controllers.
        root: the folder of the groups. Version 1 has its memory groups in ``memory/`` there.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return None
    left = []
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            # both versions at once: version 2 is in unified/, and limits no memory there
            left += [_left_v2(folder) for folder in _upwards(root, path)]
        elif "memory" in controllers.split(","):
            left += [_left_v1(folder) for folder in _upwards(root / "memory", path)]
    return min((bytes for bytes in left if bytes is not None), default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group, and those of all that it is in. In a container, the path may be that
    on the machine outside, and only the root is there.
    """
    folder = root / path.strip("/")
    above = [folder, *folder.parents]
    return [one for one in above if one == root or root in one.parents]


def _left_v2(folder: Path) -> int | None:
    return _left(folder / "memory.max", folder / "memory.current", "inactive_file")


def _left_v1(folder: Path) -> int | None:
    limit, usage = folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes"
    return _left(limit, usage, "total_inactive_file")


def _left(limit: Path, usage: Path, cache: str) -> int | None:
    """Bytes between a group's limit and its use. Cached files are not counted as used: the kernel
    gives them up when memory is wanted. ``memory.stat`` counts them under the name ``cache``.
    """
    most, used = _number_in(limit), _number_in(usage)
    if most is None or used is None or most >= NO_LIMIT:
        return None
    cached = 0
    try:
        for line in (limit.parent / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == cache:
                cached = int(value)
    except (OSError, ValueError):
        pass  # without it the estimate is on the safe side
    return max(0, most - max(0, used - cached))


def _number_in(path: Path) -> int | None:
    """The number in a file; None where there is no file, or a word such as "max" in it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
