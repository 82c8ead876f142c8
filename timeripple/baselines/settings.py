"""Settings of a baseline as text: `name[:first][:key=value...]`, read and written by the fields of its dataclass."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Self, cast

from timeripple.attention.method import ConfigError, require
from timeripple.attention.settings_text import number_text


class NamedSettings:
    """What a frozen dataclass of numbers needs to be a baseline: a name, a label, and settings read from text.

    `class PabConfig(NamedSettings, name="pab")`; fields are int, float or str by their defaults.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name

    @property
    def label(self) -> str:
        """The name, the first setting and those that are not the defaults, e.g. "pab-2-start=200"."""
        first, *others = fields(cast(Any, self))
        values = {field.name: _written(getattr(self, field.name)) for field in (first, *others)}
        changed = [f"{f.name}={values[f.name]}" for f in others if getattr(self, f.name) != f.default]
        return "-".join([self.name, values[first.name], *changed])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `name[:first][:key=value...]`; what stands without a key is the first setting. Raises ConfigError, one
        sentence, for what is unknown, given twice or no number, and what the settings themselves raise."""
        known: dict[str, type[Any]] = {field.name: type(field.default) for field in fields(cast(Any, cls))}
        values: dict[str, Any] = {}
        for part in text.strip().split(":")[1:]:
            name, value = part.split("=", 1) if "=" in part else (next(iter(known)), part)
            if name not in known or name in values:
                problem = "given twice" if name in values else "unknown"
                raise ConfigError(f"setting {name!r} in {text!r} is {problem}; choose from {', '.join(known)}.")
            try:
                values[name] = known[name](value)
            except ValueError:
                number = "a whole number" if known[name] is int else "a number"
                raise ConfigError(f"{value!r} in {text!r} is not a value of {name}; give {number}.") from None
        return cls(**values)


def _written(value: float | str) -> str:
    return value if isinstance(value, str) else number_text(value)


def as_reuse(granularity: str, text: str, known: tuple[str, ...]) -> str:
    """The text of a baseline that has some of the settings of `ReuseConfig`, as `ReuseConfig.parse` reads it. Raises
    ConfigError, one sentence, for settings it does not have."""
    settings = text.strip().split(":")[1:]
    for name in (part.split("=")[0] for part in settings if "=" in part):
        require(name in known, f"setting {name!r} in {text!r} is unknown", known)
    return ":".join((granularity, *settings))
