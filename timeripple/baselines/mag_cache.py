"""MagCache (arXiv 2506.09045), as diffusers has it: steps are skipped by how the residual's magnitude is known to move.

Those magnitudes belong to a model and have to be measured on it, which `magnitude_ratios` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers import MagCacheConfig as DiffusersConfig
from diffusers.hooks.mag_cache import nearest_interp
from torch import Tensor, nn

from timeripple import ASSETS
from timeripple.attention.method import ConfigError, require
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import caching
from timeripple.hooks import transformers

RATIOS = ASSETS / "settings" / "pond-mag-ratios.json"


@dataclass(frozen=True)
class MagCacheConfig(NamedSettings, name="mag-cache"):
    """threshold: accumulated error up to which steps are skipped; max_skip: of them in a row; retention: share of the
    steps at the start that are never skipped. The defaults are diffusers'."""

    threshold: float = 0.06
    max_skip: int = 3
    retention: float = 0.2

    def __post_init__(self) -> None:
        require(self.threshold >= 0, f"threshold {self.threshold} is negative; give 0 or more")
        require(self.max_skip >= 1, f"max_skip {self.max_skip} is not a number of steps; give 1 or more")
        require(0 <= self.retention <= 1, f"retention {self.retention} is not a share; give a number from 0 to 1")

    def computed(self, num_inference_steps: int) -> tuple[int, ...]:
        """The steps that are computed, as diffusers counts, with Pond's magnitudes, the only ones that are known."""
        kept = int(self.retention * num_inference_steps + 0.5)
        steps, skipped, ratio, error = list[int](), 0, torch.tensor(1.0), torch.tensor(0.0)
        for step, scale in enumerate(nearest_interp(torch.tensor(pond_ratios()), num_inference_steps)):
            if step >= kept:
                ratio, skipped = ratio * scale, skipped + 1
                error = error + abs(1 - ratio)
                if steps and error <= self.threshold and skipped <= self.max_skip:
                    continue
                skipped, ratio, error = 0, torch.tensor(1.0), torch.tensor(0.0)
            steps.append(step)
        return tuple(steps)

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        """Raises ConfigError for pipelines whose magnitudes are not known."""
        if type(pipeline).__name__ != "PondPipeline":
            raise ConfigError(
                f"mag-cache needs the magnitudes of {type(pipeline).__name__}'s model, and only Pond's are known; "
                "measure them with baselines.mag_cache.magnitude_ratios."
            )
        with caching(
            pipeline,
            lambda: DiffusersConfig(
                threshold=self.threshold,
                max_skip_steps=self.max_skip,
                retention_ratio=self.retention,
                num_inference_steps=num_inference_steps,
                mag_ratios=pond_ratios(),
            ),
        ):
            yield


def pond_ratios() -> list[float]:
    return list(json.loads(RATIOS.read_text(encoding="utf-8"))["ratios"])


def magnitude_ratios(pipeline: DiffusionPipeline, **arguments: Any) -> list[float]:
    """Of a dense run with these arguments: by how much the residual of all blocks together, output minus input, is
    larger than at the step before, mean over tokens, one number a step; the first is 1. First guidance pass only."""
    model = transformers(pipeline)[0]
    blocks: Any = next(part for name, part in model.named_children() if name in ("blocks", "transformer_blocks"))
    norms: list[Tensor] = []
    seen: set[int] = set()
    entered: list[Tensor] = []

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        hidden_states = output[0] if isinstance(output, tuple) else output
        norms.append((hidden_states.float() - entered.pop().float()).norm(dim=-1))

    def keep_one_pass(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del norms[len(seen) + 1 :]  # the passes after the first
        seen.add(step)
        return tensors

    with ExitStack() as hooks:
        hooks.enter_context(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
        hooks.enter_context(blocks[-1].register_forward_hook(leave))
        pipeline(**arguments, callback_on_step_end=keep_one_pass)
    return [1.0, *((now / before).mean().item() for before, now in pairwise(norms))]
