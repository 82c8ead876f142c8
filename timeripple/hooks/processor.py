"""The processor around the processor of a self-attention module: its one call of attention goes to the run.

Normalisation, projections and RoPE stay the model's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from timeripple.hooks.compiled import handle, traced_processor, tracing

OWN = ("processor", "root", "layer", "handle")


class ReuseProcessor:
    """processor: the model's own, which is called; root: the hook of its transformer; layer: name of its module."""

    def __init__(self, processor: Any, root: Any, layer: str):
        self.processor, self.root, self.layer = processor, root, layer
        self.handle = handle(self)

    @classmethod
    def around(cls, processor: Any, root: Any, layer: str) -> ReuseProcessor:
        like = _like(type(processor))  # type: ignore[arg-type]  # mypy does not see that classes are hashable
        return like(processor, root, layer)

    def __reduce__(self) -> Any:
        return ReuseProcessor.around, (self.processor, self.root, self.layer)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a processor, such as its attention backend, is asked of the model's own."""
        if name in OWN or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.processor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.processor, name, value)

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """In place of scaled_dot_product_attention."""
        return self.root.attention(self.layer, *args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The processor on (module, hidden_states, ...), with attention by the run in progress."""
        root = self.root
        if not root.active or _scores_are_skipped():
            return self.processor(*args, **kwargs)

        def intercepted() -> Any:
            with Interception(self.attend):
                output = self.processor(*args, **kwargs)
            root.check_calls(self.layer)
            return output

        hidden_states = args[1] if len(args) > 1 else kwargs["hidden_states"]
        return root.module(self.layer, hidden_states.shape, intercepted)


@functools.cache
def _like(processor: type) -> type[ReuseProcessor]:
    """The class for processors of a class: modules read the signature of their processor's `__call__`."""

    traced = traced_processor(processor)

    @functools.wraps(processor.__call__)
    def call(self: ReuseProcessor, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.run(*args, **kwargs)
        if torch.is_grad_enabled():
            return self.processor(*args, **kwargs)
        if traced is None:
            return run_outside_the_graph(self, *args, **kwargs)
        tracing.layer = self
        output = traced(self.processor, *args, **kwargs)
        tracing.layer = None
        return output

    return type(f"Reuse{processor.__name__}", (ReuseProcessor,), {"__call__": call})


@torch.compiler.disable
def run_outside_the_graph(processor: ReuseProcessor, *args: Any, **kwargs: Any) -> Any:
    """For processors that cannot be traced."""
    return processor.run(*args, **kwargs)


class Interception(TorchFunctionMode):
    """Calls `attention` in place of scaled_dot_product_attention."""

    def __init__(self, attention: Callable[..., Tensor]):
        super().__init__()
        self.attention = attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = self.attention if func is scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


def _scores_are_skipped() -> bool:
    """Whether perturbed-attention guidance replaces attention by its values here."""
    return any(isinstance(mode, AttentionScoreSkipFunctionMode) for mode in _get_current_function_mode_stack())
