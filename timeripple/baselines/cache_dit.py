"""cache-dit (github.com/vipshop/cache-dit), the library, from the extra `[peers]`: DBCache, alone or continued by
TaylorSeer, or at the steps of a mask.

The first blocks are always computed; the others are left out while the residual of the first changes by less than a
threshold. Defaults are the library's, but that the first blocks and the warm-up, 8 blocks and 8 steps there, are shares
here. It has to be told whether guidance takes two passes, which is seen at the second pass: where it takes one, the
library starts anew there, one step late. Blocks that return text beside the video in another order are not adapted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from timeripple.attention.method import ConfigError, require
from timeripple.baselines.forecast import evenly_spaced
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import refuse_model_offloading, unhooked_after
from timeripple.hooks import transformers

HOOK = "timeripple-cache-dit"


@dataclass(frozen=True)
class CacheDitConfig(NamedSettings, name="cache-dit"):
    """threshold: of the residual's relative change, 0.08 by default; first: share of blocks always computed, warmup:
    of the steps; taylor: order of the series that continues what is left out, 0: none; share: of the steps that
    a mask has computed, evenly spaced, whatever changes; 0: no mask."""

    threshold: float = 0.08
    first: float = 0.2
    warmup: float = 0.16
    taylor: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        require(self.threshold >= 0, f"threshold {self.threshold} is negative; give 0 or more")
        require(self.taylor >= 0, f"taylor {self.taylor} is not an order; give 0 or more")
        for name in ("first", "warmup", "share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} {value} is not a share; give a number from 0 to 1")

    def mask(self, num_inference_steps: int) -> list[int] | None:
        """1 for the steps that are computed."""
        if not self.share:
            return None
        computed = evenly_spaced(max(2, round(self.share * num_inference_steps)), num_inference_steps)
        return [int(step in computed) for step in range(num_inference_steps)]

    def of(self, blocks: int, num_inference_steps: int, done: int, two_passes: bool) -> dict[str, Any]:
        """The library's settings for the steps after so many."""
        import cache_dit

        mask = self.mask(num_inference_steps)
        settings: dict[str, Any] = {
            "cache_config": cache_dit.DBCacheConfig(
                Fn_compute_blocks=max(1, round(self.first * blocks)),
                residual_diff_threshold=self.threshold,
                max_warmup_steps=max(1, round(self.warmup * num_inference_steps) - done),
                num_inference_steps=num_inference_steps - done,
                enable_separate_cfg=two_passes,
                steps_computation_mask=mask and [1, *mask[done + 1 :]],
                steps_computation_policy="static",
            )
        }
        if self.taylor:
            settings["calibrator_config"] = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.taylor)
        return settings

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        """Raises ConfigError where the library is not installed or does not know how the model's blocks are called."""
        if find_spec("cache_dit") is None:
            raise ConfigError("cache-dit is not installed; install it with pip install 'timeripple[peers]'.")
        refuse_model_offloading(pipeline, "cache-dit")
        import cache_dit

        for handler in logging.getLogger("CACHE_DIT").handlers:  # one for all its loggers, which prints among results
            handler.setLevel(logging.CRITICAL)
        models: list[Any] = transformers(pipeline)
        on: list[tuple[Any, Any, Any]] = []
        with unhooked_after(models):
            try:
                for model in models:
                    blocks = getattr(model, "blocks", None)
                    if not isinstance(blocks, nn.ModuleList):
                        kind = type(model).__name__
                        raise ConfigError(f"cache-dit is adapted to Wan's blocks here, which {kind} lacks.")
                    adapter = cache_dit.BlockAdapter(
                        transformer=model,
                        blocks=blocks,
                        forward_pattern=cache_dit.ForwardPattern.Pattern_2,
                        has_separate_cfg=True,
                    )
                    hook = ContextHook(self, num_inference_steps)
                    registry = HookRegistry.check_if_exists_or_initialize(model)
                    registry.register_hook(hook, HOOK)
                    registry.invalidate_child_registries_cache()
                    on.append((model, adapter, model.register_forward_pre_hook(hook.before)))
                    cache_dit.enable_cache(adapter, **self.of(len(blocks), num_inference_steps, 0, True))
                    hook.held = model._context_manager
                yield
            finally:
                for model, adapter, handle in on:
                    handle.remove()
                    if "_original_forward" in vars(model):  # of diffusers' hooks, which the library cannot put back
                        model.forward = vars(model).pop("_original_forward")
                    cache_dit.disable_cache(adapter)


class ContextHook(ModelHook):
    """Starts the library anew with every run, and once more where guidance turns out to take one pass."""

    _is_stateful = True

    def __init__(self, config: CacheDitConfig, num_inference_steps: int):
        super().__init__()
        self.config, self.steps = config, num_inference_steps
        self.contexts = StateManager(BaseState)  # `cache_context` puts its information into every StateManager
        self.names: list[str] = []
        self.held: Any = None  # where the library keeps things, for those who count them

    def before(self, module: Any, _: Any) -> None:
        self.names.append(self.contexts.context.name)
        if len(self.names) == 2 and self.names[0] == self.names[1]:
            self._begin(module, 1, two_passes=False)

    def reset_state(self, module: Any) -> Any:
        self.names = []
        self._begin(module, 0, two_passes=True)
        return module

    def _begin(self, module: Any, done: int, two_passes: bool) -> None:
        import cache_dit

        cache_dit.refresh_context(module, **self.config.of(len(module.blocks), self.steps, done, two_passes))
