"""HSA, heterogeneous step allocation (arXiv 2605.06892): tokens whose velocity hardly changes take fewer steps. Tokens
that are active at a step attend to the keys and values of all, which are kept of those that are not; these move on with
their last velocity, a cached Euler update.

As described in the paper's abstract and in what others wrote of it, which leave open how many tokens are active, where
the window lies in which tokens rest, and what exactly ranks them. Here it is how far a token's velocity moved between
the last two steps at which all were active, in the L1 norm and as a share of the earlier one; taken from the first
guidance pass, mean over the batch. There are two groups: `share` of the tokens take every step and the others every
`divisor`-th, which by default leaves half of the work of the window, the milder of the paper's two budgets. Whatever
solver the pipeline has goes on with the kept velocity: with solver=euler the update is the paper's, and others bring
what they know of earlier steps into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import ModelHook
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, scaled_dot_product_attention

from timeripple.attention.method import ConfigError, require
from timeripple.baselines.block_stack import PlacedHook, hooked
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import refuse_model_offloading
from timeripple.hooks import HOOK, family_of, transformers
from timeripple.hooks.processor import Interception


@dataclass(frozen=True)
class HsaConfig(NamedSettings, name="hsa"):
    """share: of the tokens that take every step; divisor: the others take one in so many; start, end: shares of the
    steps at the start, two at least, and at the end at which all tokens are active."""

    share: float = 0.25
    divisor: int = 3
    start: float = 0.1
    end: float = 0.1
    stacks = False  # on other ways to compute attention, which want all tokens

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, f"share {self.share} is not a share of the tokens; give more than 0, at most 1")
        require(self.divisor >= 1, f"divisor {self.divisor} is not a number of steps; give 1 or more")
        for name in ("start", "end"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"{name} {share} is not a share of the steps; give a number from 0 to 1")

    def full(self, num_inference_steps: int) -> frozenset[int]:
        """The steps at which all tokens are active."""
        first = max(2, round(self.start * num_inference_steps))
        last = range(num_inference_steps - round(self.end * num_inference_steps), num_inference_steps)
        between = range(first - 1 + self.divisor, num_inference_steps, self.divisor)
        return frozenset([*range(first), *between, *last])

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        """Raises ConfigError for pipelines of other transformers than Wan's, of which Pond's is one."""
        require_wan(pipeline, self.name)
        refuse_model_offloading(pipeline, self.name)
        full, roots = self.full(num_inference_steps), list[tuple[nn.Module, RootHook]]()

        def make_root(model: nn.Module) -> RootHook:
            roots.append((model, RootHook(self.share, full)))
            return roots[-1][1]

        with hooked(pipeline, make_root, BlockHook):
            try:
                for model, root in roots:
                    for layer, module in self_attention(model).items():
                        module.processor.processor = Synchronised(module.processor.processor, root, layer)
                yield
            finally:
                for model, _ in roots:
                    for module in self_attention(model).values():
                        if isinstance(own := module.processor.processor, Synchronised):
                            module.processor.processor = own.processor


def require_wan(pipeline: DiffusionPipeline, name: str) -> None:
    """Raises ConfigError unless all transformers of the pipeline are of Wan's class."""
    for model in transformers(pipeline):
        if type(model).__name__ != "WanTransformer3DModel":
            raise ConfigError(
                f"{name} works in the blocks of Wan's transformer, and {type(pipeline).__name__} has a "
                f"{type(model).__name__}; choose another method."
            )


def self_attention(model: nn.Module) -> dict[str, Any]:
    family = family_of(model)
    assert family is not None  # as it is Wan's
    return family.attention_modules(model)


@dataclass
class Kept:
    """Of one guidance pass: keys and values by layer, the velocity, that of the last full step, and how much every
    token's changed between the last two full steps, [tokens]."""

    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    velocity: Tensor | None = None
    before: Tensor | None = None
    change: Tensor | None = None


class RootHook(ModelHook):
    """The transformer: chooses the tokens of a step, and gives the others the velocity they had.

    rows: of the tokens that are active in this pass, None: all; kept: of this pass.
    """

    _is_stateful = True

    def __init__(self, share: float, full: frozenset[int]):
        super().__init__()
        self.share, self.full = share, full
        self._forget()

    def _forget(self) -> None:
        self.passes: dict[str, Kept] = {}
        self.run: int | None = None
        self.step = -1
        self.chosen: Tensor | None = None  # at this step, by its first pass
        self.rows: Tensor | None = None
        self.kept = Kept()

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        clock = module._diffusers_hook.get_hook(HOOK)
        if not clock.active:  # nobody knows the step, and attention stays dense
            self._forget()
            return self.fn_ref.original_forward(*args, **kwargs)
        if clock.number != self.run:
            self._forget()
            self.run = clock.number
        latents = args[0] if args else kwargs["hidden_states"]
        self.kept = self.passes.setdefault(clock.passes[-1], Kept())
        if clock.step != self.step:
            self.step, self.chosen = clock.step, None if clock.step in self.full else self._choose()
        before = self.kept.velocity
        known = before is not None and (len(before), *before.shape[2:]) == (len(latents), *latents.shape[2:])
        self.rows = clock.run.rows = self.chosen if known else None
        output = self.fn_ref.original_forward(*args, **kwargs)
        velocity = output[0] if isinstance(output, tuple) else output.sample
        velocity = self._keep(velocity, module.config.patch_size)
        self.rows = None
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

    def _choose(self) -> Tensor | None:
        """The tokens whose velocity changes most, in their order; None where no change was measured yet."""
        change = next(iter(self.passes.values())).change
        if change is None:
            return None
        return change.topk(max(1, round(self.share * len(change)))).indices.sort().values

    def _keep(self, velocity: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """What goes out: the new velocity of active tokens, the one before of others."""
        kept = self.kept
        if self.rows is not None and kept.velocity is not None:
            grid = [size // edge for size, edge in zip(velocity.shape[2:], patch, strict=True)]
            active = torch.zeros(*grid, dtype=torch.bool, device=velocity.device)
            active.view(-1)[self.rows] = True
            for axis, edge in enumerate(patch):
                active = active.repeat_interleave(edge, axis)
            velocity = torch.where(active, velocity, kept.velocity)
        elif kept.before is None or kept.before.shape != velocity.shape:
            kept.before = velocity
        else:
            distance, size = ((x.float().abs()).sum(1) for x in (velocity - kept.before, kept.before))
            moved, norm = (avg_pool3d(x[:, None], patch) for x in (distance, size))
            kept.change = (moved / norm.clamp(min=1e-12)).mean(0).flatten()
            kept.before = velocity
        kept.velocity = velocity
        return velocity

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._forget()
        return module


class BlockHook(PlacedHook):
    """One block: computes active tokens only; the first takes them out, the last puts them back among zeros."""

    root: RootHook

    def new_forward(
        self, module: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any
    ) -> Tensor:
        rows = self.root.rows
        if rows is None:
            return self.fn_ref.original_forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        tokens = rotary_emb[0].shape[1]
        if self.is_first:
            hidden_states = hidden_states[:, rows]
        own = temb[:, rows] if temb.ndim == 4 else temb  # a timestep for every token
        turns = tuple(x[:, rows] for x in rotary_emb)
        output = self.fn_ref.original_forward(hidden_states, encoder_hidden_states, own, turns)
        if self.is_last:
            active, output = output, output.new_zeros(len(output), tokens, output.shape[-1])
            output[:, rows] = active
        return output


class Synchronised:
    """Around the processor of a self-attention module: active queries meet the keys and values of all tokens, of which
    those of active ones are new."""

    def __init__(self, processor: Any, root: RootHook, layer: str):
        self.processor, self.root, self.layer = processor, root, layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Interception(self.attend):
            return self.processor(*args, **kwargs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """In place of scaled_dot_product_attention; whoever computes that is given all tokens, and told the rows."""
        rows, pairs = self.root.rows, self.root.kept.pairs
        if rows is None:
            pairs[self.layer] = key, value
            return scaled_dot_product_attention(query, key, value, *args, **kwargs)
        keys, values = pairs[self.layer]
        keys[:, :, rows], values[:, :, rows] = key, value
        queries = torch.zeros_like(keys)
        queries[:, :, rows] = query
        return scaled_dot_product_attention(queries, keys, values, *args, **kwargs)[:, :, rows]
