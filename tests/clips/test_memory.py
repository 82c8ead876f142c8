"""The memory of a container, on files as Linux has them."""

import psutil
import pytest

from timeripple.clips import models
from timeripple.clips.memory import free_memory

GB = 10**9


def container(tmp_path, version, own, limits):
    """The file that names a process's own groups; limits: {group: (limit, used, cached)}."""
    (tmp_path / "own").write_text(own)
    root = tmp_path / "cgroup"
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        root, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for group, (limit, used, cached) in limits.items():
        (folder := root / group).mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\n")
    return tmp_path / "cgroup", tmp_path / "own"


@pytest.mark.parametrize(
    ("version", "own", "limits", "left"),
    [
        (2, "0::/\n", {"": (2 * GB, GB, 0)}, GB),
        (2, "0::/\n", {"": (2 * GB, 2 * GB, GB // 2)}, GB // 2),
        (2, "0::/pod/app\n", {"pod": (2 * GB, GB, 0), "pod/app": ("max", GB, 0)}, GB),
        (2, "0::/pod/app\n", {"pod": (3 * GB, GB, 0), "pod/app": (2 * GB, GB, 0)}, GB),
        (1, "9:cpu:/other\n5:memory:/app\n", {"": (2**63 - 4096, GB, 0), "app": (2 * GB, GB, 0)}, GB),
        (1, "5:memory:/docker/seen-from-outside\n", {"": (2 * GB, GB, 0)}, GB),  # as mounted in a container
        (2, "0::/\n", {"": (GB, 2 * GB, 0)}, 0),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, version, own, limits, left):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 50 * GB}))
    assert free_memory(*container(tmp_path, version, own, limits)) == left


def test_without_limits_it_is_the_machine_s(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 50 * GB}))
    assert free_memory(tmp_path, tmp_path / "none") == 50 * GB
    assert free_memory(*container(tmp_path, 2, "0::/\n", {"": ("max", GB, 0)})) == 50 * GB


def test_a_model_that_the_container_cannot_hold_is_refused(tiny_wan, monkeypatch):
    monkeypatch.setattr(models, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"needs about .* GB of memory in .*, and 0\.0 GB are free"):
        models.load_pipeline(str(tiny_wan), device="cpu")
