"""TimeRipple: reuse of partial attention scores in video diffusion transformers."""

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["ASSETS", "ReuseConfig", "disable", "enable", "load", "summary"]

_HERE = Path(__file__).resolve().parent
ASSETS = _HERE / "assets" if (_HERE / "assets").is_dir() else _HERE.parent / "assets"
"""Where the bundled Pond and its settings are: inside the package when it is installed, beside it in the repository."""

_HOMES = {"ReuseConfig": "timeripple.attention.config", "load": "timeripple.clips.tuned"} | dict.fromkeys(
    ("disable", "enable", "summary"), "timeripple.hooks"
)


def __getattr__(name: str) -> Any:
    """Imports torch and diffusers on first use only."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
