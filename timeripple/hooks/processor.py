"""The processor around the processor of a self-attention module: its one call of attention goes to the run.

Normalisation, projections and RoPE stay the model's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack


class ReuseProcessor:
    """processor: the model's own, which is called; root: the hook of its transformer; layer: name of its module."""

    def __init__(self, processor: Any, root: Any, layer: str):
        self.processor, self.root, self.layer = processor, root, layer

    @classmethod
    def around(cls, processor: Any, root: Any, layer: str) -> ReuseProcessor:
        return _like(type(processor))(processor, root, layer)

    def __reduce__(self) -> Any:
        return ReuseProcessor.around, (self.processor, self.root, self.layer)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a processor, such as its attention backend, is asked of the model's own."""
        if name in ("processor", "root", "layer") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.processor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("processor", "root", "layer"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.processor, name, value)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The processor on (module, hidden_states, ...), with attention by the run in progress."""
        root = self.root
        if not root.active or _scores_are_skipped():
            return self.processor(*args, **kwargs)

        def intercepted() -> Any:
            with Interception(partial(root.attention, self.layer)):
                output = self.processor(*args, **kwargs)
            root.check_calls(self.layer)
            return output

        hidden_states = args[1] if len(args) > 1 else kwargs["hidden_states"]
        return root.module(self.layer, hidden_states.shape, intercepted)


@functools.cache
def _like(processor: type) -> type[ReuseProcessor]:
    """The class for processors of a class: modules read the signature of their processor's `__call__`."""

    @functools.wraps(processor.__call__)
    def call(self: ReuseProcessor, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    return type(f"Reuse{processor.__name__}", (ReuseProcessor,), {"__call__": call})


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
