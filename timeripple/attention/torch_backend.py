"""What every plan is carried out with on any device: scaled_dot_product_attention, on all rows or those left."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from timeripple.attention.call import AttentionCall

ROWS_PER_PART = 384  # PyTorch's blocks are smaller, and evenly dealt out, below twice these
WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def dense_attention(call: AttentionCall, *, queries: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Attention without reuse, [batch, heads, tokens, d]; keys that the key mask hides are not seen.

    queries: numbers of those that are computed, by default all; residual: added to the output, of its shape.
    """
    mask = None if call.key_mask is None else call.key_mask[:, None, None, :]
    query = call.query if queries is None else call.query[:, :, queries]
    output = scaled_dot_product_attention(query, call.key, call.value, attn_mask=mask, scale=call.scale)
    return output if residual is None else output.add_(residual)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """One head: [rows, d] queries, keys with a bias each or none, values.

    On the CPU, queries are dealt out to the threads in equal parts: left to itself, PyTorch deals out blocks of 256,
    and one thread may get one more than the others. On a GPU, cuDNN would plan every number of rows anew, which takes
    it longer than the call.
    """
    parts = max(1, min(torch.get_num_threads(), len(query) // ROWS_PER_PART)) if query.device.type == "cpu" else 1
    rows = -(-len(query) // parts)
    queries = pad(query, (0, 0, 0, parts * rows - len(query))).view(parts, 1, rows, -1)
    keys, values = (x.expand(parts, 1, -1, -1) for x in (key, value))
    mask = None if bias is None else bias[None, None, None]
    with sdpa_kernel(WITHOUT_CUDNN) if query.is_cuda else nullcontext():
        output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    return output.view(parts * rows, -1)[: len(query)]


def warn_of_fallback(error: Exception) -> None:
    """Says that PyTorch stands in for a Triton kernel, and why."""
    reason = " ".join(str(error).split())[:200]
    warnings.warn(f"Triton kernels do not run here, PyTorch's attention is used instead: {reason}", stacklevel=4)
