"""Every way to generate by name: dense attention, our reuse at three granularities, and the baselines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from timeripple.baselines import OutputCacheConfig, SkipConfig
from timeripple.config import GRANULARITIES, ConfigError, ReuseConfig
from timeripple.hooks import disable, enable, summary

PARSERS = {
    **dict.fromkeys(GRANULARITIES, ReuseConfig.parse),
    "output-cache": OutputCacheConfig.parse,
    "skip": SkipConfig.parse,
}
METHODS = ("dense", *PARSERS)
SETTINGS = Path(__file__).resolve().parent.parent / "assets" / "settings"


@dataclass(frozen=True)
class Method:
    """A way to compute self-attention. text: as the user wrote it; config: None for dense."""

    text: str
    config: ReuseConfig | OutputCacheConfig | None

    @property
    def label(self) -> str:
        """Short name that is safe in file names, e.g. "token-0.75"; settings other than the defaults are named."""
        return self.config.label if self.config else "dense"

    @contextmanager
    def applied(self, pipeline) -> Iterator[Callable[[], dict]]:
        """Enabled inside the block, gone after it; yields what returns `hooks.summary`, also after the block."""
        final = None
        enable(pipeline, self.config)
        try:
            yield lambda: final or summary(pipeline)
        finally:
            final = summary(pipeline)
            disable(pipeline)


def parse_method(text: str) -> Method:
    """Reads "dense" or `name[:budget][:key=value...]`, e.g. "token:0.75", "skip:0.7:refresh=5", "output-cache:0.67".

    Raises ConfigError, one sentence, for unknown names and settings that cannot work.
    """
    text = text.strip()
    name, _, settings = text.partition(":")
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}.")
    if name == "dense" and settings:
        raise ConfigError(f"dense has no settings, but {text!r} gives {settings!r}; write dense.")
    return Method(text, None if name == "dense" else PARSERS[name](text))


def load_method(path: str | Path) -> Method:
    """The method whose settings `ReuseConfig.save` wrote to a JSON file.

    Raises ConfigError, one sentence, for a file that holds no such settings, and OSError where it cannot be read.
    """
    try:
        config = ReuseConfig.load(path)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no settings of reuse: {error}; give a file that calibrate wrote.") from None
    return Method(config.text, config)


def calibrated_methods() -> dict[int, Method]:
    """Settings found for Pond by `calibrate --psnr`, by the PSNR in dB they were to keep, the highest first."""
    files = {int(re.search(r"(\d+)dB", path.name)[1]): path for path in SETTINGS.glob("pond-*dB.json")}
    return {psnr: load_method(files[psnr]) for psnr in sorted(files, reverse=True)}
