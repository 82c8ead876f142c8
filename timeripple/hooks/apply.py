"""enable, disable and summary: attention with reuse inside a diffusers pipeline or transformer.

A hook on the transformer knows pass, step and grid of the forward pass in progress and owns the state of the run. A
hook on every self-attention module replaces the one call of `scaled_dot_product_attention` in it: normalisation,
projections and RoPE stay the model's own.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import AttentionMethod, ConfigError
from timeripple.attention.timing import now
from timeripple.hooks.families import FAMILIES, GENERIC, Family, family_of

HOOK = "timeripple"
HIDDEN = -9_999  # additive masks are this or less, or 0


def enable(
    target, config: AttentionMethod | None, *, num_inference_steps: int | None = None, memory_limit: int | None = None
) -> None:
    """Switch reuse on in a pipeline or transformer, in place of what was enabled before.

    target: a diffusers pipeline, of which every supported transformer is taken, or a transformer. config: None keeps
    attention dense and only measures its time; baselines bring configs of their own. num_inference_steps: for pipelines
    that tell the transformer neither this nor `num_timesteps`. memory_limit: bytes that feedback may hold; by default
    half of what is free on a GPU. To keep to it errors are kept more coarsely, in the host's memory or of fewer layers.

    Attention stays dense, with one warning that names the reason, where gradients are recorded, the model is in
    training mode, the step is unknown, or the sequence or its mask is not what the token grid says. Raises ConfigError
    where nothing is supported, and at the first forward pass if the config does not fit the number of steps.
    """
    disable(target)
    clock = StepClock(lambda: num_inference_steps or getattr(target, "num_timesteps", None))
    for transformer, family in _transformers(target):
        layers = family.attention_modules(transformer)
        root = TransformerHook(family, config, list(layers), clock, memory_limit)
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        registry.register_hook(root, HOOK)
        for name, module in layers.items():
            HookRegistry.check_if_exists_or_initialize(module).register_hook(AttentionHook(root, name), HOOK)
        registry.invalidate_child_registries_cache()


def disable(target) -> None:
    """Take out what `enable` put in; nothing happens if there is nothing. The last summary is lost."""
    for transformer, family in _transformers(target):
        for module in (*family.attention_modules(transformer).values(), transformer):
            registry = getattr(module, "_diffusers_hook", None)
            if registry is None or registry.get_hook(HOOK) is None:
                continue
            registry.remove_hook(HOOK, recurse=False)
            if vars(module).get("forward") == type(module).forward.__get__(module):
                del module.forward  # diffusers leaves the class's own method on the instance
            registry.invalidate_child_registries_cache()
            if not registry.hooks:
                del module._diffusers_hook


def summary(target) -> dict:
    """Numbers of the run in progress or else of the last one.

    method: label of the config, or "dense"; granularity: None for dense; layers: self-attention layers; grid: tokens
    along t, y and x, None before attention saw any; seconds:
    {"attention", "plan"}, wall clock spent in self-attention between projections, planning included, and in planning
    alone, which is more than the records' by what chooses thresholds; saving: as `ReuseRun.saving`, None
    for dense or before the first run; held_bytes: most memory held for later steps at a time; storage: how errors are
    kept, as `residuals.Storage.report`; records: as `ReuseRun.records`. The transformers of a pipeline are added up.
    Raises ConfigError if nothing is enabled.
    """
    registries = (getattr(transformer, "_diffusers_hook", None) for transformer in transformers(target))
    hooks = [hook for registry in registries if registry and (hook := registry.get_hook(HOOK))]
    if not hooks:
        raise ConfigError(f"Nothing is enabled in this {type(target).__name__}; call enable first.")
    total, *others = (hook.summary() for hook in hooks)
    for other in others:
        total = _add(total, other)
    return total


def transformers(target) -> list[nn.Module]:
    """The supported transformers of a pipeline, or the transformer itself. Raises ConfigError if there are none."""
    return [transformer for transformer, _ in _transformers(target)]


def _transformers(target) -> list[tuple[nn.Module, Family]]:
    components = [unwrap_module(part) for part in getattr(target, "components", {"": target}).values()]
    found = [(part, family) for part in components if isinstance(part, nn.Module) and (family := family_of(part))]
    if not found:
        raise ConfigError(f"{type(target).__name__} has no supported transformer; supported: {', '.join(FAMILIES)}.")
    known = [(part, family) for part, family in found if family is not GENERIC]
    return known or found  # text encoders may have layers of usual names too


def _add(first: dict, second: dict) -> dict:
    """Summaries of two transformers that share the denoising steps of one run; each counts 0 at the other's steps."""
    savings = [part["saving"] for part in (first, second) if part["saving"]]
    saving = {**savings[0]} if savings else None
    for other in savings[1:]:
        saving |= {name: saving[name] + other[name] for name in ("reuse_steps", "all_steps")}
        saving["per_step"] = [a + b for a, b in zip(saving["per_step"], other["per_step"], strict=True)]
    return first | {
        "seconds": {name: first["seconds"][name] + second["seconds"][name] for name in first["seconds"]},
        "saving": saving,
        **{name: first[name] + second[name] for name in ("layers", "held_bytes", "records")},
    }


@dataclass
class StepClock:
    """The denoising step, counted from the timesteps of the forward passes, for pipelines that do not tell it.

    total: number of denoising steps, None while unknown. Shared by the transformers of a pipeline.
    """

    total: Callable[[], int | None]
    timesteps: list[float] = field(default_factory=list)

    def step(self, timestep: Tensor | float) -> int:
        """Step of a forward pass. Returning to an earlier timestep, or exceeding the total, starts a new run."""
        value = float(torch.as_tensor(timestep).max())
        if value in self.timesteps[:-1] or (value not in self.timesteps and len(self.timesteps) == self.total()):
            self.timesteps.clear()
        if value not in self.timesteps:
            self.timesteps.append(value)
        return len(self.timesteps) - 1


class TransformerHook(ModelHook):
    """Opens and closes the forward passes of a run; starts a new run when the steps start over or sizes change."""

    _is_stateful = True

    def __init__(
        self,
        family: Family,
        config: AttentionMethod | None,
        layers: list[str],
        clock: StepClock,
        memory_limit: int | None,
    ):
        super().__init__()
        self.family, self.config, self.layers, self.clock = family, config, layers, clock
        self.memory_limit, self.heads = memory_limit, {}  # heads of the layers, once seen
        self.states = StateManager(BaseState)  # `cache_context` puts its information into every StateManager
        self.run, self.active, self.last_summary, self.warned, self.grid = None, False, None, set(), None

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args, **kwargs):
        self.active = self._begin(module, args, kwargs)
        if not self.active:
            return self.fn_ref.original_forward(*args, **kwargs)
        try:
            output = self.fn_ref.original_forward(*args, **kwargs)
            self._end()
        except BaseException:
            self.reset_state(module)
            raise
        finally:
            self.active, self.arguments = False, {}  # and with them the tensors of this pass
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Ends the run: its numbers stay, its tensors go. Pipelines call this through maybe_free_model_hooks."""
        self.last_summary = self.summary()
        self.run = None
        self.clock.timesteps.clear()
        return module

    def attention_module(self, layer: str, forward: Callable[[], Tensor]) -> Tensor:
        """Runs a self-attention module with its one call of scaled_dot_product_attention replaced."""
        if not self.active:
            return forward()

        def intercepted() -> Tensor:
            self.called.add(layer)
            with Interception(partial(self._attention, layer)) as interception:
                output = forward()
            self._check_calls(layer, interception.calls)
            return output

        # A run may stand in for the module as a whole, as caches of its output do.
        module = getattr(self.run, "module", None)
        return module(layer, intercepted) if module else intercepted()

    def summary(self) -> dict:
        if self.run is None and self.last_summary is not None:
            return self.last_summary
        records = list(self.run.records) if self.run else []
        plan = sum(record["plan_seconds"] for record in records) + (self.choosing_seconds if self.run else 0)
        attention = plan + sum(record["attention_seconds"] for record in records)
        return {
            "method": self.config.label if self.config else "dense",
            "granularity": self.config.granularity if self.config else None,
            "layers": len(self.layers),
            "grid": self.grid,
            "seconds": {"attention": attention, "plan": plan},
            "saving": self.run.saving() if self.run and self.config else None,
            "held_bytes": self.held_bytes if self.run else 0,
            "storage": self.run.storage.report() if hasattr(self.run, "storage") else None,
            "records": records,
        }

    @torch.compiler.disable
    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> bool:
        """Opens a forward pass of the run; False where attention has to stay dense."""
        if torch.is_grad_enabled():
            return self._warn("gradients are recorded; generate under torch.no_grad()")
        if module.training:
            return self._warn("the model is in training mode; call eval() on it")
        if _splits_the_sequence(module):
            return self._warn("ring attention gives every rank a part of the grid; use ulysses_degree instead")
        self.transformer = module
        self.arguments = arguments = inspect.signature(self.fn_ref.original_forward).bind(*args, **kwargs).arguments
        context = self._context()
        step = context and context.step_index
        step = self.clock.step(arguments["timestep"]) if step is None else step
        total = (context and context.num_inference_steps) or self.clock.total()
        if total is None:
            return self._warn("the number of steps is unknown; give num_inference_steps to enable")
        if step >= total:
            return self._warn(f"the pipeline takes more than {total} steps; give num_inference_steps to enable")

        hidden_states = arguments["hidden_states"]
        sizes = total, hidden_states.shape, hidden_states.dtype, hidden_states.device
        seen = self.passes if self.run and step == self.step else []
        name = context.name if context else f"pass {len(seen)}"
        same = self.run is not None and (sizes == self.sizes or getattr(self.run, "any_batch", False))
        if not same or step < self.step or (step == 0 and name in seen):
            self._start(total)
            seen = []
        self.sizes, self.step, self.passes, self.called = sizes, step, [*seen, name], set()
        start = now()
        self.run.begin_forward(name, step)
        self.choosing_seconds += now() - start
        return True

    @torch.compiler.disable
    def _end(self) -> None:
        start = now()
        for layer in self.layers:
            if layer not in self.called:  # a cache stood in for it
                self.run.skipped(layer, self.heads.get(layer, 1))
        self.run.end_forward()
        self.choosing_seconds += now() - start
        self.held_bytes = max(self.held_bytes, self.run.held_bytes)

    def _start(self, total: int) -> None:
        config = ReuseConfig(budget=0) if self.config is None else self.config
        self.run = config.start(total)
        if hasattr(self.run, "limit_memory"):
            samples = len(self.arguments["hidden_states"]) if self.family.per_sample else 1
            self.run.limit_memory(self.memory_limit, samples * len(self.layers))
        self.held_bytes, self.choosing_seconds = 0, 0.0

    def _context(self):
        """What the pipeline said through `cache_context`, or None."""
        try:
            return self.states.context
        except ValueError:
            return None

    def _check_calls(self, layer: str, calls: int) -> None:
        """Raises RuntimeError where attention was not intercepted exactly once for what it had to compute."""
        wanted = len(self.arguments["hidden_states"]) if self.family.per_sample else 1
        if calls == wanted:
            return
        remedy = 'call set_attention_backend("native") on the transformer'
        if self.family is GENERIC:
            self._warn(f"{layer} calls scaled_dot_product_attention {calls} times; {remedy}")
            return
        raise RuntimeError(f"{layer} called scaled_dot_product_attention {calls} times instead of {wanted}; {remedy}.")

    def _attention(
        self,
        layer: str,
        call: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """In place of scaled_dot_product_attention, with its signature; call: counts the calls of the module."""
        try:
            if query.shape[2] != key.shape[2] or dropout_p or is_causal or enable_gqa:
                raise ValueError("attention is causal, grouped, across sequences or with dropout")
            grid = self.family.grid(self.transformer, self.arguments, query.shape[2])
            asked = AttentionCall(query, key, value, grid, scale, read_mask(attn_mask, len(query), grid))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._warn(str(error))
            return scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        self.grid, self.heads[layer] = list(grid.shape), query.shape[1]
        name = layer if call == 0 else f"{layer}[{call}]"  # samples that are computed apart keep their errors apart
        return self.run.attention(name, asked)

    def _warn(self, reason: str) -> bool:
        if reason not in self.warned:
            warnings.warn(f"Attention stays dense: {reason}.", stacklevel=2)
        self.warned.add(reason)
        return False


class AttentionHook(ModelHook):
    """Hands a self-attention module over to the hook of its transformer."""

    def __init__(self, root: TransformerHook, layer: str):
        super().__init__()
        self.root, self.layer = root, layer

    @torch.compiler.disable
    def new_forward(self, module: nn.Module, *args, **kwargs) -> Tensor:
        return self.root.attention_module(self.layer, partial(self.fn_ref.original_forward, *args, **kwargs))


class Interception(TorchFunctionMode):
    """Calls `attention` in place of scaled_dot_product_attention, and counts how often."""

    def __init__(self, attention: Callable[..., Tensor]):
        super().__init__()
        self.attention, self.calls = attention, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self.attention(self.calls - 1, *args, **(kwargs or {}))


def read_mask(mask: Tensor | None, batch: int, grid: TokenGrid) -> Tensor | None:
    """The mask of an attention call as keys that are seen, bool [batch, tokens]; None where all are.

    mask: bool or additive, [batch or 1, heads or 1, queries or 1, tokens]. Queries of text that no key sees may differ
    from the others, as nothing reads what they get. Raises ValueError, one clause, for what this cannot express.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        if not ((mask == 0) | (mask <= HIDDEN)).all():
            raise ValueError("its mask weighs keys instead of hiding them")
        mask = mask == 0
    rows = mask[:, :, grid.video] if mask.shape[2] > 1 else mask
    seen = rows[:, :1, :1]
    if not (rows == seen).all():
        raise ValueError("its mask differs between video tokens or heads")
    if mask.shape[2] > 1:
        text = grid.text(mask.device)
        same = (mask[:, :, text] == seen).all(-1)
        if not (same | ~seen[..., 0, text]).all():
            raise ValueError("its mask differs between text and video")
    if not seen[..., grid.video].all():
        raise ValueError("its mask hides video tokens")
    return None if seen.all() else seen[:, 0, 0].expand(batch, -1)


def _splits_the_sequence(transformer: nn.Module) -> bool:
    """Whether context parallelism leaves a rank less than the whole sequence (`enable_parallelism` of diffusers)."""
    parallel = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    return parallel is not None and (parallel.ring_degree or 1) > 1
