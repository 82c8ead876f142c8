"""What baselines that cache modules or steps share: how they are switched on, and how what they skip is counted.

Those of diffusers are its own hooks. They are put on after ours and so lie around them: where
one leaves a module out, no attention arrives here, and that is what is saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn

from timeripple.attention.call import AttentionCall
from timeripple.attention.method import ConfigError, Kind, Step, dense_steps
from timeripple.attention.records import Records
from timeripple.attention.timing import mark
from timeripple.attention.torch_backend import dense_attention
from timeripple.hooks import transformers
from timeripple.hooks.registry import listen, listen_no_more

PASSES_HOOK = "timeripple-passes"


class StepCache(Protocol):
    """A frozen config of what leaves modules or steps out. It may have `computed(num_inference_steps)`, the steps at
    which attention is asked for, where they are known beforehand, and `stacks = False` if it cannot be stacked."""

    @property
    def label(self) -> str:
        """See `attention.method.AttentionMethod`."""

    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> AbstractContextManager[None]:
        """On inside. Raises ConfigError for pipelines it does not suit."""


@contextmanager
def caching(pipeline: DiffusionPipeline, config: Callable[[], object]) -> Iterator[None]:
    """Inside, every transformer of the pipeline has a cache of diffusers, each with a config of its own. Raises
    ConfigError, before anything has run, where diffusers does not know the transformer or it has another cache."""
    models: list[Any] = transformers(pipeline)  # of diffusers
    for model in models:
        if getattr(model, "is_cache_enabled", False):
            raise ConfigError(f"{type(model).__name__} has a cache already; call disable_cache() on it.")
    with unhooked_after(models):
        try:
            for model in models:
                try:
                    model.enable_cache(config())
                except (ValueError, AttributeError) as error:
                    raise ConfigError(f"This cache does not suit {type(model).__name__}: {error}") from error
            yield
        finally:
            for model in models:
                if getattr(model, "is_cache_enabled", False):
                    model.disable_cache()


@contextmanager
def unhooked_after(models: list[Any]) -> Iterator[None]:
    """After the block, hooks of diffusers that were put on inside it are off these models, also those of a cache that
    failed half-way."""
    before = {module: [*registry.hooks] for model in models for module, registry in _registries(model)}
    try:
        yield
    finally:
        for model in models:
            for module, registry in _registries(model):
                for name in [name for name in reversed(registry._hook_order) if name not in before.get(module, [])]:
                    registry.remove_hook(name, recurse=False)
                if vars(module).get("forward") == type(module).forward.__get__(module):
                    del module.forward  # diffusers leaves the class's own method on the instance
                registry.invalidate_child_registries_cache()
                if not registry.hooks:
                    del module._diffusers_hook


def _registries(model: Any) -> list[tuple[Any, HookRegistry]]:
    return [(module, module._diffusers_hook) for module in model.modules() if hasattr(module, "_diffusers_hook")]


@contextmanager
def state_per_pass(pipeline: DiffusionPipeline, hook_name: str) -> Iterator[None]:
    """Inside, hooks of this name have a state for each guidance pass; as they are, passes read each other's caches."""
    models: list[Any] = transformers(pipeline)
    handles = []
    for model in models:
        passes = PassesHook([hook for _, registry in _registries(model) if (hook := registry.get_hook(hook_name))])
        listen(model, passes, PASSES_HOOK)
        handles.append(model.register_forward_pre_hook(passes.before))
    try:
        yield
    finally:
        for model, handle in zip(models, handles, strict=True):
            handle.remove()
            listen_no_more(model, PASSES_HOOK)


class PassesHook(ModelHook):
    """Gives other hooks the state of the pass that begins."""

    _is_stateful = True

    def __init__(self, hooks: list[ModelHook]):
        super().__init__()
        self.hooks = hooks
        self.states: dict[tuple[str, ModelHook], BaseState] = {}
        self.contexts = StateManager(BaseState)  # `cache_context` puts its information into every StateManager

    def before(self, module: nn.Module, args: Any) -> None:
        name = self.contexts.context.name
        for hook in self.hooks:
            hook.state = self.states.setdefault((name, hook), type(hook.state)())

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.clear()
        return module


@contextmanager
def counting_bytes(pipeline: DiffusionPipeline) -> Iterator[Callable[[], int]]:
    """Yields what returns the most bytes that caches which are put on transformers inside held after a forward pass.
    Hooks that were there before are none; those of offloading hold weights."""
    models: list[Any] = transformers(pipeline)
    most, others = 0, _hooks(models)

    def count(*_: Any) -> None:
        nonlocal most
        held = tensors_in([hook for hook in _hooks(models) if hook not in others])
        most = max(most, sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values()))

    with ExitStack() as watching:
        for model in models:
            watching.enter_context(model.register_forward_hook(count))
        yield lambda: most


def _hooks(models: list[Any]) -> list[ModelHook]:
    return [hook for model in models for _, registry in _registries(model) for hook in registry.hooks.values()]


def tensors_in(value: Any, seen: set[int] | None = None) -> list[Tensor]:
    """Tensors that an object holds in its fields and containers, modules and functions passed over."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        return [value]
    if id(value) in seen or isinstance(value, nn.Module | type | ModuleType) or callable(value):
        return []
    seen.add(id(value))
    inside: Iterable[Any] = vars(value).values() if hasattr(value, "__dict__") else ()
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        inside = value
    return [tensor for part in list(inside) for tensor in tensors_in(part, seen)]


@dataclass(frozen=True)
class CountedConfig:
    """What `hooks.enable` takes with a step cache alone: dense attention, of which the calls are counted."""

    label: str = "dense"
    granularity: str = "module"
    kind: Kind = "realised"

    def schedule(self, num_inference_steps: int) -> tuple[Step, ...]:
        return dense_steps(num_inference_steps)

    def start(self, num_inference_steps: int) -> CountedRun:
        return CountedRun(self.schedule(num_inference_steps))


class CountedRun:
    """Does for a cache what `ReuseRun` does for reuse, and keeps the same records.

    A cache may set, for the forward pass that begins, `rows`: the numbers of the queries that it wants, None: all, and
    `samples`: of the batch that the pass is asked for, None: the most that were seen.
    """

    rows: Tensor | None = None
    samples: int | None = None

    def __init__(self, steps: tuple[Step, ...]):
        self.steps, self._records, self._batch = steps, Records(), 1

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        self._name, self._step = pass_name, self.steps[step_index]

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        """[batch, heads, tokens, d], dense, 0 for queries that are not wanted; samples that are missing from the batch
        are saved, as are the rows."""
        start = mark(call.device)
        if self.rows is None:
            output, share = dense_attention(call), 1.0
        else:
            output, share = torch.zeros_like(call.query), len(self.rows) / call.grid.tokens
            output[:, :, self.rows] = dense_attention(call, queries=self.rows)
        self._batch = max(self._batch, call.batch)
        saving = torch.full((call.heads,), 1 - share * call.batch / (self.samples or self._batch), dtype=torch.float64)
        self._records.add(self._step, self._name, layer, None, saving, (start, start, mark(call.device)))
        return output

    def skipped(self, layer: str, heads: int) -> None:
        """Takes note of a layer whose attention was not asked for in this forward pass."""
        self._records.add_skipped(self._step, self._name, layer, heads)

    def end_forward(self) -> None:
        """Nothing to close."""

    @property
    def held_bytes(self) -> int:
        """Of attention none; for what caches hold see `counting_bytes`."""
        return 0

    @property
    def records(self) -> list[dict[str, Any]]:
        """See `Records.read`."""
        return self._records.read()
