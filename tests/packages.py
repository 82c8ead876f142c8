"""The installed packages that some requirements ask for, to give to an environment without downloading anything."""

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needs(requirements: list[str], extra: str = "") -> dict[str, Distribution]:
    """The distributions of this environment that these requirements, and theirs in turn, ask for, by name."""
    found: dict[str, Distribution] = {}
    left = [(Requirement(text), extra) for text in requirements]
    while left:
        requirement, extra = left.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            part = distribution(name)
        except PackageNotFoundError:  # as of a CPU build of torch, which leaves the parts for GPUs out
            continue
        if name not in found or requirement.extras:
            found[name] = part
            left += [(Requirement(text), e) for text in part.requires or () for e in (requirement.extras or ("",))]
    return found


def packages(requirements: list[str]) -> list[Path]:
    """Files and folders of site-packages that hold these distributions."""
    return sorted(
        {
            Path(part.locate_file(path.parts[0]))
            for part in needs(requirements).values()
            for path in part.files or ()
            if path.parts[0] not in ("..", "__pycache__") and Path(part.locate_file(path.parts[0])).exists()
        }
    )
