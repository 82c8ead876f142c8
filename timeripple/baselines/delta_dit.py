"""Delta-DiT (arXiv 2406.01125): the change that a run of blocks makes, output minus input, returns at other steps.

Early steps, which settle the outline, keep the change of the rear blocks; later ones, which settle detail, that of the
front blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn

from timeripple.attention.method import require
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import unhooked_after
from timeripple.hooks import transformers

HOOK = "timeripple-delta-dit"


@dataclass(frozen=True)
class DeltaDitConfig(NamedSettings, name="delta-dit"):
    """interval: kept blocks are computed at every so many steps; share: of the blocks that are kept; boundary: share of
    the steps that keep the rear blocks. The paper tunes all three for each model; these are in the middle."""

    interval: int = 2
    share: float = 0.5
    boundary: float = 0.5

    def __post_init__(self) -> None:
        require(self.interval >= 1, f"interval {self.interval} is not a number of steps; give 1 or more")
        require(
            0 < self.share <= 1, f"share {self.share} keeps no block, or more than all; give more than 0, at most 1"
        )
        require(0 <= self.boundary <= 1, f"boundary {self.boundary} is not a share of the steps; give 0 to 1")

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        models = transformers(pipeline)
        with unhooked_after(models):
            for model in models:
                blocks = blocks_of(model)
                kept = max(1, round(self.share * len(blocks)))
                rear, front = range(len(blocks) - kept, len(blocks)), range(kept)
                states = StateManager(DeltaState)
                spans = [
                    rear if step < self.boundary * num_inference_steps else front for step in range(num_inference_steps)
                ]
                for number, block in enumerate(blocks):
                    registry = HookRegistry.check_if_exists_or_initialize(block)
                    registry.register_hook(DeltaHook(states, spans, self.interval, number), HOOK)
                HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()
            yield


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks in the order of the forward pass."""
    return [
        module for name, module in model.named_modules() if re.fullmatch(r"(single_)?(transformer_)?blocks\.\d+", name)
    ]


@dataclass
class DeltaState(BaseState):
    """Of one guidance pass: steps begun, what entered the kept blocks, and the change they made last, by span."""

    step: int = -1
    entered: tuple[Tensor, ...] = ()
    changes: dict[range, tuple[Tensor, ...]] = field(default_factory=dict)
    computing: bool = True

    def reset(self) -> None:
        self.step, self.entered, self.changes = -1, (), {}


class DeltaHook(ModelHook):
    """One block: passes on what it is given while its span is kept; the first of the span adds the change."""

    _is_stateful = True

    def __init__(self, states: StateManager, spans: list[range], interval: int, number: int):
        super().__init__()
        self.states, self.spans, self.interval, self.number = states, spans, interval, number

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state: DeltaState = self.states.get_state()
        if self.number == 0:
            state.step += 1
        span = self.spans[min(state.step, len(self.spans) - 1)]
        if self.number not in span:
            return self.fn_ref.original_forward(*args, **kwargs)
        if self.number == span.start:
            state.entered = streams(args, kwargs)
            state.computing = span not in state.changes or state.step % self.interval == 0
        if not state.computing:
            given = streams(args, kwargs)
            if self.number == span.start:
                given = tuple(stream + change for stream, change in zip(given, state.changes[span], strict=False))
            return given if len(state.changes[span]) > 1 else given[0]
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.number == span.stop - 1:
            left = output if isinstance(output, tuple) else (output,)
            state.changes[span] = tuple(out - into for out, into in zip(left, state.entered, strict=False))
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module


def streams(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """hidden_states and encoder_hidden_states, as blocks of all families are given them."""
    names = ("hidden_states", "encoder_hidden_states")
    given = dict(zip(names, args, strict=False)) | {name: kwargs[name] for name in names if name in kwargs}
    return tuple(given.values())
