"""Every way to generate by name: dense attention, our reuse at three granularities, baselines, and stacks of two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline

from timeripple import ASSETS
from timeripple.attention.config import GRANULARITIES, ReuseConfig
from timeripple.attention.method import AttentionMethod, ConfigError
from timeripple.baselines import ATTENTION, STEP_CACHES, CountedConfig, StackedConfig, StepCache, ThinnedConfig
from timeripple.hooks import disable, enable, summary

PARSERS: dict[str, Any] = dict.fromkeys(GRANULARITIES, ReuseConfig) | ATTENTION | STEP_CACHES
METHODS = ("dense", *PARSERS)
SETTINGS = ASSETS / "settings"


@dataclass(frozen=True)
class Method:
    """A way to denoise. text: as the user wrote it; config: of attention, None for dense; cache: a step cache, or
    None."""

    text: str
    config: AttentionMethod | None
    cache: StepCache | None = None

    @property
    def label(self) -> str:
        """Short name that is safe in file names, e.g. "token-0.75"; settings other than the defaults are named."""
        return "+".join(part.label for part in (self.config, self.cache) if part) or "dense"

    def check(self, num_inference_steps: int) -> None:
        """Raises ConfigError for settings that do not fit so many steps."""
        if self.config is not None:
            computed = self._computed(num_inference_steps)
            self.config.schedule(num_inference_steps if computed is None else len(computed))

    def _attention(self, num_inference_steps: int) -> AttentionMethod | None:
        """What `hooks.enable` takes: the config, counted by a step cache, or over the steps it computes."""
        if self.cache is None:
            return self.config
        if self.config is None:
            return CountedConfig()
        computed = self._computed(num_inference_steps)
        return self.config if computed is None else ThinnedConfig(cast(ReuseConfig, self.config), computed)

    def _computed(self, num_inference_steps: int) -> tuple[int, ...] | None:
        """The steps at which the step cache has attention computed, where that is known beforehand."""
        computed = getattr(self.cache, "computed", None)
        return None if computed is None else tuple(computed(num_inference_steps))

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[Callable[[], dict[str, Any]]]:
        """Enabled inside the block, gone after it; yields what returns `hooks.summary`, also after the block.

        With a step cache method is the label of both, and held_bytes None: what caches hold is not known. Raises
        ConfigError where the pipeline does not suit the method.
        """
        final = None
        enable(pipeline, self._attention(num_inference_steps), num_inference_steps=num_inference_steps)

        def summarise() -> dict[str, Any]:
            numbers = summary(pipeline)
            return numbers | {"method": self.label, "held_bytes": None} if self.cache else numbers

        try:
            with self.cache.applied(pipeline, num_inference_steps) if self.cache else nullcontext():
                yield lambda: final or summarise()
        finally:
            final = summarise()
            disable(pipeline)


def parse_method(text: str) -> Method:
    """Reads "dense", `name[:budget][:key=value...]`, e.g. "token:0.75", "skip:0.7:refresh=5", "first-block-cache:0.1",
    or a stack of two with + between: a method and a step cache, or channel reuse and a mask.

    Raises ConfigError, one sentence, for unknown names and settings that cannot work.
    """
    text = text.strip()
    attention: list[Any] = []
    caches: list[StepCache] = []
    for part in text.split("+"):
        name, _, settings = part.strip().partition(":")
        if name not in METHODS:
            raise ConfigError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}.")
        if name == "dense":
            if settings or "+" in text:
                raise ConfigError(f"dense has no settings and stacks on nothing, but this is {text!r}; write dense.")
            continue
        (caches if name in STEP_CACHES else attention).append(PARSERS[name].parse(part))
    if len(attention) + len(caches) > 2 or len(caches) > 1:
        raise ConfigError(f"{text!r} stacks too much; stack two, of which one may be a step cache.")
    config = StackedConfig(*attention) if len(attention) == 2 else next(iter(attention), None)
    return Method(text, config, next(iter(caches), None))


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
    files = {int(path.stem.removeprefix("pond-").removesuffix("dB")): path for path in SETTINGS.glob("pond-*dB.json")}
    return {psnr: load_method(files[psnr]) for psnr in sorted(files, reverse=True)}
