"""LightningCP (arXiv 2509.00052): between key steps only the last block is computed, on what entered it at the key
step, for latents that the scheduler continues with the key step's output; so all steps up to the next key step are one
batch, and the solver then takes them with outputs that are there.

As described in the abstract and our notes on it. The paper's models are U-Nets, in whose last block kept features meet
fresh ones over a skip connection. A transformer has its residual stream in that place: what enters the last block is
the embedding of the latents and the change that the blocks before made at the key step. From key step to key step there
are 3 steps here; what the authors take is not known to us. Attention on the moving foreground only, their option for
talking heads, is left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import ModelHook
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from timeripple.attention.method import ConfigError, require
from timeripple.baselines.block_stack import PlacedHook, hooked
from timeripple.baselines.hsa import require_wan
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import refuse_model_offloading
from timeripple.hooks import HOOK


@dataclass(frozen=True)
class LightningCpConfig(NamedSettings, name="lightning-cp"):
    """interval: steps from key step to key step."""

    interval: int = 3

    def __post_init__(self) -> None:
        require(self.interval >= 1, f"interval {self.interval} is not a number of steps; give 1 or more")

    def computed(self, num_inference_steps: int) -> tuple[int, ...]:
        """The key steps."""
        return tuple(range(0, num_inference_steps, self.interval))

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        """Raises ConfigError for pipelines of other transformers than Wan's, of which Pond's is one, and those that
        give every token a timestep of its own."""
        require_wan(pipeline, self.name)
        refuse_model_offloading(pipeline, self.name)
        if pipeline.config.get("expand_timesteps"):
            raise ConfigError(
                f"{self.name} computes several steps in a batch, and this {type(pipeline).__name__} has timesteps by "
                "token; choose another method."
            )
        scheduler: Any = pipeline.scheduler
        ahead, step = Ahead(), scheduler.step

        def step_and_continue(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            """As the scheduler's own; after a key step it goes on in a copy, with the same output."""
            stepped = step(output, timestep, sample, *args, **kwargs)
            if ahead.wanted:
                twin, latents = deepcopy(scheduler), stepped[0]
                for index in ahead.wanted:
                    at = twin.timesteps[twin.step_index]
                    ahead.latents[index] = latents, at
                    latents = type(scheduler).step(twin, output, at, latents, *args, **kwargs)[0]
                ahead.wanted = range(0)
            return stepped

        scheduler.step = step_and_continue
        try:
            with hooked(pipeline, lambda _: RootHook(self.interval, ahead), BlockHook):
                yield
        finally:
            del scheduler.step


@dataclass
class Ahead:
    """wanted: the steps after a key step whose latents the scheduler is to continue to; latents: what it came to, with
    the timestep, by step."""

    wanted: range = range(0)
    latents: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Kept:
    """Of one guidance pass: the change of all blocks but the last at the key step, and outputs by step."""

    change: Tensor | None = None
    outputs: dict[int, Tensor] = field(default_factory=dict)


class RootHook(ModelHook):
    """The transformer: computes key steps whole, and those between from the last block.

    kept: of this pass; entered: the embedding of its latents; continues: whether the last block alone is computed.
    """

    _is_stateful = True

    def __init__(self, interval: int, ahead: Ahead):
        super().__init__()
        self.interval, self.ahead = interval, ahead
        self._forget()

    def _forget(self) -> None:
        self.passes: dict[str, Kept] = {}
        self.run: int | None = None
        self.key: int | None = None  # the last key step
        self.kept = Kept()
        self.entered: Tensor | None = None
        self.continues = False
        self.ahead.wanted, self.ahead.latents = range(0), {}

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        clock = module._diffusers_hook.get_hook(HOOK)
        if not clock.active:  # nobody knows the step
            self._forget()
            return self.fn_ref.original_forward(*args, **kwargs)
        if clock.number != self.run:
            self._forget()
            self.run = clock.number
        given = inspect.signature(self.fn_ref.original_forward).bind(*args, **kwargs).arguments
        latents, step = given["hidden_states"], clock.step
        self.kept = kept = self.passes.setdefault(clock.passes[-1], Kept())
        clock.run.samples = len(latents)
        if step not in kept.outputs:
            if not self._can_continue(step, latents):
                return self._compute(given, step, len(clock.run.steps))
            kept.outputs = self._continue(given, step)
        output = kept.outputs.pop(step)
        return Transformer2DModelOutput(sample=output) if given.get("return_dict", True) else (output,)

    def _compute(self, given: dict[str, Any], step: int, steps: int) -> Any:
        """A key step, of a run of so many."""
        if step != self.key:  # the first pass of it
            self.key, self.ahead.latents = step, {}
            self.ahead.wanted = range(step + 1, min((step // self.interval + 1) * self.interval, steps))
        self.kept.outputs = {}
        output = self.fn_ref.original_forward(**given)
        self.entered = None
        return output

    def _can_continue(self, step: int, latents: Tensor) -> bool:
        if self.kept.change is None or step not in self.ahead.latents:
            return False
        expected = self.ahead.latents[step][0]
        return expected.shape[2:] == latents.shape[2:] and len(self.kept.change) == len(latents)

    def _continue(self, given: dict[str, Any], step: int) -> dict[int, Tensor]:
        """The outputs from this step to the next key step, from one batch through the last block."""
        latents = given["hidden_states"]
        ahead = {index: pair for index, pair in self.ahead.latents.items() if index >= step}
        batch = dict(given)
        for name, value in given.items():
            if isinstance(value, Tensor):
                batch[name] = value.repeat(len(ahead), *[1] * (value.ndim - 1))
        continued = torch.cat([x.repeat(len(latents) // len(x), 1, 1, 1, 1) for x, _ in ahead.values()])
        batch["hidden_states"][:, : continued.shape[1]] = continued  # beside them may be what the model is given, too
        batch["timestep"] = torch.cat([at.expand(len(latents)).to(given["timestep"]) for _, at in ahead.values()])
        self.continues = True
        try:
            output = self.fn_ref.original_forward(**batch)
        finally:
            self.continues = False
        sample = output[0] if isinstance(output, tuple) else output.sample
        return dict(zip(ahead, sample.split(len(latents)), strict=True))

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._forget()
        return module


class BlockHook(PlacedHook):
    """One block: only the last is computed between key steps, on the embedding and the change of those before it."""

    root: RootHook

    def new_forward(self, module: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        root = self.root
        if root.continues and not self.is_last:
            return hidden_states
        if not root.continues and self.is_first:
            root.entered = hidden_states
        if self.is_last and root.continues and root.kept.change is not None:
            change = root.kept.change.repeat(len(hidden_states) // len(root.kept.change), 1, 1)
            hidden_states = (hidden_states.float() + change).to(hidden_states.dtype)
        elif self.is_last and root.entered is not None:
            root.kept.change = hidden_states.float() - root.entered.float()
        return self.fn_ref.original_forward(hidden_states, *args, **kwargs)
