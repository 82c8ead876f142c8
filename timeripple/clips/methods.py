"""Every way to generate by name: dense attention, our reuse at three granularities, baselines, and stacks of two."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import is_compiled_module, unwrap_module
from torch import nn

from timeripple import ASSETS
from timeripple.attention.config import GRANULARITIES, ReuseConfig
from timeripple.attention.method import AttentionMethod, ConfigError
from timeripple.baselines import ATTENTION, STEP_CACHES, CountedConfig, StackedConfig, StepCache, ThinnedConfig
from timeripple.baselines.step_cache import counting_bytes, hooks_of
from timeripple.clips.solvers import SOLVERS, evaluations, solving
from timeripple.hooks import disable, enable, summary, transformers

PARSERS: dict[str, Any] = dict.fromkeys(GRANULARITIES, ReuseConfig) | ATTENTION | STEP_CACHES
METHODS = ("dense", *PARSERS)
SETTINGS = ASSETS / "settings"


@dataclass(frozen=True)
class Method:
    """A way to denoise. text: as the user wrote it; config: of attention, None for dense; cache: a step cache, or
    None; steps: of its own, or None for those of the request; solver: one of `SOLVERS`, or None for the pipeline's."""

    text: str
    config: AttentionMethod | None
    cache: StepCache | None = None
    steps: int | None = None
    solver: str | None = None

    @property
    def label(self) -> str:
        """Short name that is safe in file names, e.g. "token-0.75"; settings other than the defaults are named."""
        parts = "+".join(part.label for part in (self.config, self.cache) if part) or "dense"
        run = [f"{name}={value}" for name in RUN if (value := getattr(self, name)) is not None]
        return "-".join([parts, *run])

    def evaluations(self, requested: int) -> int:
        """How often the denoiser is asked in a run for which so many steps are requested, of one guidance pass."""
        return evaluations(self.solver, self.steps or requested)

    def check(self, requested: int) -> None:
        """Raises ConfigError for settings that do not fit a run for which so many steps are requested."""
        if self.config is not None:
            count = self.evaluations(requested)
            computed = self._computed(count)
            self.config.schedule(count if computed is None else len(computed))

    def check_pipeline(self, pipeline: DiffusionPipeline) -> None:
        """Raises ConfigError where it cannot be applied to a pipeline that was compiled."""
        models = transformers(pipeline)
        compiled = [
            part for part in pipeline.components.values() if unwrap_module(part) in models and is_compiled(part)
        ]
        if self.cache is not None and (compiled or any(map(is_compiled, blocks_of(pipeline)))):
            raise ConfigError(
                f"{self.cache.label} steps into blocks of the transformer, which are compiled; load the model without "
                "compiling it, or leave the step cache out."
            )

    def _attention(self, num_inference_steps: int) -> AttentionMethod | None:
        """What `hooks.enable` takes: the config, counted by a step cache, or over the steps it computes."""
        if self.cache is None:
            return self.config
        if self.config is None:
            return CountedConfig()
        computed = self._computed(num_inference_steps)
        return self.config if computed is None else ThinnedConfig(cast(ReuseConfig, self.config), computed)

    def _computed(self, num_inference_steps: int) -> tuple[int, ...] | None:
        """The steps at which the step cache has attention computed, where reuse goes by them and they are known
        beforehand."""
        computed = getattr(self.cache, "computed", None)
        if computed is None or not isinstance(self.config, ReuseConfig):
            return None
        return tuple(computed(num_inference_steps))

    @contextmanager
    def applied(
        self, pipeline: DiffusionPipeline, num_inference_steps: int, *, warn_of_shortfall: bool = True
    ) -> Iterator[Callable[[], dict[str, Any]]]:
        """Enabled inside the block, gone after it; yields what returns `hooks.summary`, also after the block.

        num_inference_steps: how many steps the pipeline makes, see `pipelines.denoising_steps`: of `steps`, where the
        method has its own.
        warn_of_shortfall: see `hooks.enable`. Its method is `label`, and held_bytes the most that attention held and
        the most that a step cache did. Raises ConfigError where the pipeline does not suit the method.
        """
        self.check_pipeline(pipeline)
        final = None
        cached: Callable[[], int] = int  # nothing
        count = evaluations(self.solver, num_inference_steps)
        config = self._attention(count)
        enable(pipeline, config, num_inference_steps=count, warn_of_shortfall=warn_of_shortfall)

        def summarise() -> dict[str, Any]:
            numbers = summary(pipeline)
            return numbers | {"method": self.label, "held_bytes": numbers["held_bytes"] + cached()}

        try:
            with ExitStack() as stack:
                stack.enter_context(solving(pipeline, self.solver))
                if self.cache:
                    others = hooks_of(pipeline)
                    stack.enter_context(self.cache.applied(pipeline, count))
                    cached = stack.enter_context(counting_bytes(pipeline, others))
                yield lambda: final or summarise()
        finally:
            final = summarise()
            disable(pipeline)


def check_distinct(methods: Iterable[Method]) -> None:
    """Raises ConfigError, one sentence, for a method that is there twice, however it was written."""
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"The method {label} is given twice; give it once.")


def blocks_of(pipeline: DiffusionPipeline) -> list[nn.Module]:
    """What lies in the lists of modules of its transformers."""
    lists = [x for model in transformers(pipeline) for x in model.children() if isinstance(x, nn.ModuleList)]
    return [block for each in lists for block in each]


def is_compiled(module: nn.Module) -> bool:
    """By torch.compile, around it or in place."""
    return is_compiled_module(module) or module._compiled_call_impl is not None


def parse_method(text: str) -> Method:
    """Reads "dense", `name[:budget][:key=value...]`, e.g. "token:0.75", "skip:0.7:refresh=5", "first-block-cache:0.1",
    or a stack of two with + between: a method and a step cache, or channel reuse and a mask. Any may have steps and a
    solver of its own, e.g. "dense:steps=10", "token:0.5:steps=14:solver=unipc".

    Raises ConfigError, one sentence, for unknown names and settings that cannot work.
    """
    text = text.strip()
    attention: list[Any] = []
    caches: list[StepCache] = []
    run: dict[str, Any] = {}
    parts = split_stack(text)
    for part in parts:
        name, *settings = part.split(":")
        if name not in METHODS:
            raise ConfigError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}.")
        own = [setting for setting in settings if setting.split("=")[0] not in RUN]
        for setting in (setting for setting in settings if setting not in own):
            key, _, value = setting.partition("=")
            if key in run:
                raise ConfigError(f"setting {key!r} is given twice in {text!r}; give it once.")
            run[key] = RUN[key](value)
        if name == "dense":
            if own or len(parts) > 1:
                raise ConfigError(
                    f"dense has no settings but steps and solver and stacks on nothing, but this is {text!r}; "
                    "write dense."
                )
            continue
        (caches if name in STEP_CACHES else attention).append(PARSERS[name].parse(":".join([name, *own])))
    if len(attention) + len(caches) > 2 or len(caches) > 1:
        raise ConfigError(f"{text!r} stacks too much; stack two, of which one may be a step cache.")
    if attention and caches and not getattr(caches[0], "stacks", True):
        raise ConfigError(f"{caches[0].label} stacks on nothing, but this is {text!r}; give it alone.")
    config = StackedConfig(*attention) if len(attention) == 2 else next(iter(attention), None)
    return Method(text, config, next(iter(caches), None), **run)


def split_stack(text: str) -> list[str]:
    """The parts of a stack, "token:0.5+taylorseer:3" to two; the pluses of "dpm++" are none between parts."""
    return [part.strip() for part in re.split(r"\+(?=\s*[a-zA-Z])", text)]


def _read_steps(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"steps={text} is not a number of steps; give 1 or more, such as steps=14.")
    return int(text)


def _read_solver(text: str) -> str:
    if text not in SOLVERS:
        raise ConfigError(f"solver {text!r} is unknown; choose from {', '.join(SOLVERS)}.")
    return text


RUN: dict[str, Callable[[str], Any]] = {"steps": _read_steps, "solver": _read_solver}
"""Settings of the whole run, which every method may have."""


def load_method(path: str | Path) -> Method:
    """The method that `tune` or `ReuseConfig.save` wrote to a JSON file.

    Raises ConfigError, one sentence, for a file that holds no such settings, and OSError where it cannot be read.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if "method" in values:
            return parse_method(values["method"])
        if not values:
            raise TypeError("it is empty")
        config = ReuseConfig.from_dict(values)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no settings of a method: {error}; give a file that tune wrote.") from None
    return Method(config.text, config)


def calibrated_methods() -> dict[int, Method]:
    """Settings found for Pond, by the PSNR in dB they were to keep, the highest first."""
    files = {int(path.stem.removeprefix("pond-").removesuffix("dB")): path for path in SETTINGS.glob("pond-*dB.json")}
    return {psnr: load_method(files[psnr]) for psnr in sorted(files, reverse=True)}
