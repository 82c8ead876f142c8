"""TimeRipple: reuse of partial attention scores in video diffusion transformers."""

from importlib import import_module

__all__ = ["ReuseConfig", "disable", "enable", "summary"]

_HOMES = {"ReuseConfig": "timeripple.attention.config"} | dict.fromkeys(
    ("disable", "enable", "summary"), "timeripple.hooks"
)


def __getattr__(name: str):
    """Imports torch and diffusers on first use only."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
