"""The registry that diffusers keeps its hooks in, for hooks that only want to be told something.

`cache_context` says there which guidance pass begins, and pipelines say when a run is over. `register_hook` would also
replace the model's forward, which model offloading takes back after every run.
"""

from __future__ import annotations

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import HookFunctionReference
from torch import nn


def listen(module: nn.Module, hook: ModelHook, name: str) -> None:
    """The hook is told what `cache_context` says, in every StateManager it has, and its state is reset after a run."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.hooks[name] = hook
    registry._hook_order.insert(0, name)
    registry._fn_refs.insert(0, HookFunctionReference())
    registry.invalidate_child_registries_cache()


def listen_no_more(module: nn.Module, name: str) -> None:
    """Undoes `listen`; an empty registry goes."""
    registry: Any = module._diffusers_hook
    place = registry._hook_order.index(name)
    del registry.hooks[name], registry._hook_order[place], registry._fn_refs[place]
    registry.invalidate_child_registries_cache()
    if not registry.hooks:
        del module._diffusers_hook


def forget_run(model: nn.Module, but: str) -> None:
    """Other hooks of diffusers in a model, such as caches, forget what they know of a run. Pipelines have them do so at
    the end of a call alone: not between the sections of a clip, nor after an exception."""
    for module in model.modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        for name, hook in hooks.items():
            if hook._is_stateful and name != but:
                hook.reset_state(module)
