"""Settings of a baseline as text: `name[:first][:key=value...]`, read and written by the fields of its dataclass."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from timeripple.attention.method import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def parse_settings(kind: type[T], text: str) -> T:
    """`kind` with the settings of a text; what stands without a key is the first field.

    Fields are int or float by their defaults. Raises ConfigError, one sentence, for what is unknown, given twice or no
    number, and what `kind` itself raises.
    """
    known: dict[str, type[Any]] = {field.name: type(field.default) for field in fields(kind)}
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
    return kind(**values)


def as_reuse(granularity: str, text: str, known: tuple[str, ...]) -> str:
    """The text of a baseline that has some of the settings of `ReuseConfig`, as `ReuseConfig.parse` reads it. Raises
    ConfigError, one sentence, for settings it does not have."""
    settings = text.strip().split(":")[1:]
    for name in (part.split("=")[0] for part in settings if "=" in part):
        require(name in known, f"setting {name!r} in {text!r} is unknown; choose from {', '.join(known)}.")
    return ":".join((granularity, *settings))


def label_of(name: str, config: DataclassInstance) -> str:
    """The name, the first setting and those that are not the defaults, e.g. "pab-2-start=200"."""
    first, *others = fields(config)
    changed = [f"{f.name}={_number(getattr(config, f.name))}" for f in others if getattr(config, f.name) != f.default]
    return "-".join([name, _number(getattr(config, first.name)), *changed])


def require(condition: bool, problem: str) -> None:
    """Raises ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(problem)


def _number(value: float) -> str:
    return f"{value:g}"
