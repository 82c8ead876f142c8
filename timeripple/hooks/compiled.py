"""Attention with reuse under torch.compile: two operators that stay closed to the compiler.

`timeripple::begin` opens a forward pass and `timeripple::attention` is one call of attention. Everything is decided
inside them, when they run: which step it is, what is reused, whether anything is. So the graph is the same at every
step and for every layer. Whose state it is comes as a number in a tensor, whose value no graph depends on; a second
tensor, which the first operator writes and the other reads, keeps them in order.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

_numbers = itertools.count()
_owners: WeakValueDictionary[int, Any] = WeakValueDictionary()


def handle(owner: Any) -> Tensor:
    """A number by which the operators find a transformer's hook or the processor of a layer."""
    number = next(_numbers)
    _owners[number] = owner
    return torch.tensor(number)


@torch.library.custom_op("timeripple::begin", mutates_args=("token",))
def begin(handle: Tensor, token: Tensor, tensors: list[Tensor], numbers: list[int], names: str) -> None:
    """`TransformerHook.begin` with the arguments of the forward pass that are tensors or whole numbers. names: of all,
    with commas between."""
    _owners[int(handle)].begin(dict(zip(names.split(","), (*tensors, *numbers), strict=True)))
    token.add_(1)


@torch.library.custom_op("timeripple::attention", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, handle: Tensor, token: Tensor
) -> Tensor:
    """`TransformerHook.attention` of the layer behind the handle, or dense attention outside a run."""
    layer = _owners[int(handle)]
    attend = layer.attend if layer.root.active else scaled_dot_product_attention
    output: Tensor = attend(query, key, value, mask, scale=scale)
    return output.to(query.dtype).contiguous()


@attention.register_fake
def _like_query(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, handle: Tensor, token: Tensor
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def traced_begin(root: Any, arguments: dict[str, Any]) -> None:
    """What the compiler sees of the beginning of a forward pass."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in arguments.items() if type(value) in (int, torch.SymInt)}
    begin(root.handle, root.token, [*tensors.values()], [*numbers.values()], ",".join((*tensors, *numbers)))


class Tracing:
    """The layer whose processor the compiler is in."""

    layer: Any = None


tracing = Tracing()


def traced_attention(
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
    """What the compiler sees in place of scaled_dot_product_attention."""
    if dropout_p or is_causal or enable_gqa:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return attention(query, key, value, attn_mask, scale, tracing.layer.handle, tracing.layer.root.token)


def traced_processor(processor: type) -> Callable[..., Any] | None:
    """`__call__` of a processor with attention replaced in it, as the compiler shall see it; None where it is not
    written in Python.

    A mode of torch functions, as in eager execution, would end the graph at the first tensor method that is written in
    Python. So the function is made anew with other globals: both doors to attention that processors of diffusers use,
    its own dispatch and `torch.nn.functional`, lead here.
    """
    call = processor.__call__
    if not isinstance(call, types.FunctionType):
        return None
    known = {name: value for name, value in call.__globals__.items() if name != "__name__"}  # it names their module
    known["F"] = _Functional("functional")
    known["scaled_dot_product_attention"] = traced_attention
    if "dispatch_attention_fn" in known:
        known["dispatch_attention_fn"] = _dispatch_like(known["dispatch_attention_fn"])
    traced = types.FunctionType(call.__code__, known, call.__name__, call.__defaults__, call.__closure__)
    traced.__kwdefaults__ = call.__kwdefaults__
    return traced


class _Functional(types.ModuleType):
    """`torch.nn.functional` with attention replaced."""

    def __init__(self, name: str):
        super().__init__(name)
        vars(self).update(vars(functional) | {"scaled_dot_product_attention": traced_attention})


def _dispatch_like(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def dispatch(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        backend: Any = None,
        parallel_config: Any = None,
    ) -> Tensor:
        """diffusers' dispatch, [batch, tokens, heads, d]; of a sequence over several devices it is left alone."""
        if parallel_config is not None:
            return original(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs,
                backend=backend, parallel_config=parallel_config,
            )  # fmt: skip
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        output = traced_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return output.transpose(1, 2)

    return dispatch
