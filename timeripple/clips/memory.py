"""How much memory there is to take: of the machine, and of the container that this may run in."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
FILES = {  # by version: where groups lie, what may be used, what is used, and what of that is cached files
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Bytes that can still be taken without the process being killed: the least that the machine, the container and the
    groups around it have left. Cached files make room."""
    return min([psutil.virtual_memory().available, *_left_in_groups(cgroups, own)])


def _left_in_groups(cgroups: Path, own: Path) -> Iterator[int]:
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        place, limit, used, cached = FILES[2 if number == "0" else 1]
        root = cgroups / place
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # without a limit the file is not there, or says "max"
                most = int((folder / limit).read_text(encoding="utf-8"))
                stat = dict(row.split() for row in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                now = int((folder / used).read_text(encoding="utf-8"))
                yield max(0, most - now + int(stat.get(cached, 0)))
            if folder == root:
                break
