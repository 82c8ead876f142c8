"""What baselines that leave the whole stack of transformer blocks out at some steps share: the hooks around it.

Embedding and output layers, which cost next to nothing, are always computed. Every guidance pass has a `StackCache` of
its own, which says at the first block what is to leave the last one, or None to have it computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn

from timeripple.baselines.delta_dit import blocks_of, streams
from timeripple.baselines.step_cache import unhooked_after
from timeripple.hooks import transformers

HOOK = "timeripple-stack"
Root = TypeVar("Root", bound=ModelHook)
Streams = tuple[Tensor, ...]
"""hidden_states and, in families whose blocks return it too, encoder_hidden_states."""


class StackCache:
    """What one guidance pass of a run keeps. Steps are counted from 0; `first`: the cache of the first pass of the run,
    this one itself there."""

    first: StackCache

    def begin(self, step: int, latents: Tensor) -> None:
        """Before the transformer; latents: its hidden_states."""

    def instead(self, step: int, entered: Streams, arguments: dict[str, Any]) -> Streams | None:
        """At the first block, of these arguments: what leaves the last one without computing any, or None to compute
        them all; streams that blocks do not return are passed over."""
        raise NotImplementedError

    def computed(self, step: int, entered: Streams, left: Streams) -> None:
        """After the last block, where the blocks were computed."""

    def finish(self, output: Tensor) -> Tensor:
        """After the transformer: its output, or another in its place."""
        return output


def leaving_out(pipeline: DiffusionPipeline, make: Callable[[], StackCache]) -> AbstractContextManager[None]:
    """Inside, the stacks of all transformers of the pipeline are left out where caches say so; make: one for a pass."""
    return hooked(pipeline, lambda _: RootHook(make), BlockHook)


@contextmanager
def hooked(
    pipeline: DiffusionPipeline,
    make_root: Callable[[nn.Module], Root],
    make_block: Callable[[Root, bool, bool], ModelHook],
) -> Iterator[None]:
    """Inside, every transformer of the pipeline has a hook, and each of its blocks one made from it, whether it is the
    first and whether it is the last."""
    models = transformers(pipeline)
    with unhooked_after(models):
        for model in models:
            root, blocks = make_root(model), blocks_of(model)
            registry = HookRegistry.check_if_exists_or_initialize(model)
            registry.register_hook(root, HOOK)
            for number, block in enumerate(blocks):
                own = HookRegistry.check_if_exists_or_initialize(block)
                own.register_hook(make_block(root, number == 0, number == len(blocks) - 1), HOOK)
            registry.invalidate_child_registries_cache()
        yield


class RootHook(ModelHook):
    """The transformer: opens and closes the cache of the pass that runs."""

    _is_stateful = True

    def __init__(self, make: Callable[[], StackCache]):
        super().__init__()
        self.make = make
        self.contexts = StateManager(BaseState)  # `cache_context` puts its information into every StateManager
        self.caches: dict[str, tuple[StackCache, int]] = {}
        self.cache: StackCache  # of the pass that runs, its step, what entered the stack and what leaves instead
        self.step = 0
        self.entered: Streams = ()
        self.instead: Streams | None = None
        self.returned = 1  # streams, by the blocks of this model

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = self.contexts.context.name
        cache, self.step = self.caches.get(name) or (self.make(), 0)
        cache.first = next(iter(self.caches.values()))[0] if self.caches else cache
        self.caches[name] = cache, self.step + 1
        self.cache, self.instead = cache, None
        cache.begin(self.step, args[0] if args else kwargs["hidden_states"])
        output = self.fn_ref.original_forward(*args, **kwargs)
        self.entered, self.instead = (), None
        if isinstance(output, tuple):
            return (cache.finish(output[0]), *output[1:])
        output.sample = cache.finish(output.sample)
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.caches, self.entered, self.instead = {}, (), None
        return module


class PlacedHook(ModelHook):
    """Of one block, which knows the transformer's hook and where in the stack it is."""

    def __init__(self, root: Any, is_first: bool, is_last: bool):
        super().__init__()
        self.root, self.is_first, self.is_last = root, is_first, is_last


class BlockHook(PlacedHook):
    """One block: passes on what it is given where the stack is left out; the first puts what leaves it in its place."""

    root: RootHook

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        root, given = self.root, streams(args, kwargs)
        if self.is_first:
            root.entered = given
            bound = inspect.signature(self.fn_ref.original_forward).bind(*args, **kwargs)
            root.instead = root.cache.instead(root.step, given, bound.arguments)
        if root.instead is not None:
            leaving = (root.instead if self.is_first else given)[: root.returned]
            return leaving if root.returned > 1 else leaving[0]
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.is_last:
            left = output if isinstance(output, tuple) else (output,)
            root.returned = len(left)
            root.cache.computed(root.step, root.entered, left)
        return output
