"""The Triton kernels as they are launched on this device, against float64, over shapes, dtypes and head sizes.

Every (dtype, head size) is a process of its own, many at once: most of the time goes into compiling, and a compiler
that takes its process with it takes no other. Memory is poisoned: what a kernel does not write is NaN.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.plans import token
from timeripple.attention.plans.channel import ChannelPlan
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.plans.tile import TilePlan
from timeripple.attention.plans.token import Rows, TokenPlan
from timeripple.bench.gpu.findings import Findings, reason
from timeripple.bench.gpu.suite import last_words

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEAD_DIMS = (128, 64, 48, 256)
TOLERANCES = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 2e-2}  # relative error
GRIDS = (  # with the batch size
    (TokenGrid(4, 4, 4), 2),
    (TokenGrid(3, 5, 2), 2),
    (TokenGrid(2, 3, 3, text_before=3, text_after=2), 2),
    (TokenGrid(7, 15, 26, text_after=77), 2),
    (TokenGrid(13, 30, 45, text_before=226), 1),
)
SMALL_GRIDS = ((TokenGrid(2, 3, 4, text_before=1, text_after=2), 2),)
HEADS = 2
SAVING = 0.6
CONFIGS = {
    "token": ReuseConfig("token", theta=1.0),
    "tile": ReuseConfig("tile", theta=1.0),
    "channel": ReuseConfig("channel", theta=0.3),
}
QUERIES_AT_ONCE = 1024
STARTUP = 3  # seconds before the end at which processes still at work are ended


def run(findings: Findings, device: str, small: bool) -> None:
    """Rows: kernel, dtype, head_dim, cases, failed, worst_error (relative), seconds; "cases": every single one."""
    dtypes, head_dims = (("fp32",), (48,)) if small else (DTYPES, HEAD_DIMS)
    builds = list(product(dtypes, head_dims))
    with ThreadPoolExecutor(min(len(builds), os.cpu_count() or 1)) as pool:
        list(pool.map(lambda build: _run_build(findings, build[0], build[1], device, small), builds))


def _run_build(findings: Findings, dtype: str, head_dim: int, device: str, small: bool) -> None:
    command = [sys.executable, "-m", __name__, dtype, str(head_dim), device, *(["--small"] if small else [])]
    cases = []
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8")
        alarm = threading.Timer(max(findings.left - STARTUP, 0), child.kill)
        alarm.start()
        assert child.stdout is not None  # as it is a pipe
        for line in child.stdout:
            cases.append(json.loads(line))
            findings.add(cases[-1], under="cases")
        code = child.wait()
        alarm.cancel()
        for kernel in dict.fromkeys(case["kernel"] for case in cases):
            findings.add(_worst([case for case in cases if case["kernel"] == kernel]))
        if code:
            said = last_words(errors)
            findings.note(f"{dtype} of {head_dim} ended with code {code} after {len(cases)} cases: {said}")


def _worst(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """What the cases of one kernel, dtype and head size come to."""
    errors = [case["relative_error"] for case in cases if case["relative_error"] is not None]
    return {name: cases[0][name] for name in ("kernel", "dtype", "head_dim")} | {
        "cases": len(cases),
        "failed": sum(not case["passed"] for case in cases),
        "worst_error": max(errors, default=None),
        "seconds": round(sum(case["seconds"] for case in cases), 2),
    }


# --- one dtype and head size -----------------------------------------------------------------------------------------


def cases(dtype: str, head_dim: int, device: str, small: bool) -> Iterator[dict[str, Any]]:
    """One dict per kernel and grid: kernel, case, dtype, head_dim, tokens, relative_error, passed, failure, seconds
    (compiling included)."""
    for number, (grid, batch) in enumerate(SMALL_GRIDS if small else GRIDS):
        shape = batch, HEADS, grid.tokens, head_dim
        query, key, value, residual = _inputs(shape, DTYPES[dtype], device, number)
        mask = _text_mask(grid, batch, device)
        plain = AttentionCall(query, key, value, grid)
        masked = AttentionCall(query, key, value, grid, key_mask=mask)
        calls = {"dense": partial(_error_of_dense, plain, None)}
        if mask is not None:
            calls["dense, mask and residual"] = partial(_error_of_dense, masked, residual)
        for name, config in CONFIGS.items():
            calls[name] = partial(_error_of_plan, masked, config, SAVING, residual)
        calls["token, all merged"] = partial(_error_of_plan, masked, CONFIGS["token"], None, residual)
        calls["tile, no residual"] = partial(_error_of_plan, plain, CONFIGS["tile"], SAVING, None)
        calls["window_deviations"] = partial(_error_of_deviations, plain)
        for case, call in calls.items():
            print(f"{grid} {case}", file=sys.stderr, flush=True)
            started, failure, error = time.monotonic(), None, None
            try:
                error = call()
                if not error < TOLERANCES["fp32" if case == "window_deviations" else dtype]:
                    failure = f"relative error {error:.3g}"
            except Exception as raised:
                failure = reason(raised)
            yield {
                "kernel": case.split(",")[0],
                "case": f"{case} on {grid}",
                "dtype": dtype,
                "head_dim": head_dim,
                "tokens": grid.tokens,
                "relative_error": error if error is not None and math.isfinite(error) else None,
                "passed": failure is None,
                "failure": failure,
                "seconds": round(time.monotonic() - started, 3),
            }


def _inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    """q and k with something in common within a head, v and a residual."""
    generator = torch.Generator(device).manual_seed(seed)
    normal = partial(torch.randn, generator=generator, device=device)
    common = [normal(shape[0], shape[1], 1, shape[3]) for _ in range(2)]
    own = [0.6 * torch.rand(*shape[:3], 1, generator=generator, device=device) * normal(*shape) for _ in range(2)]
    query, key = (a + b for a, b in zip(common, own, strict=True))
    return [x.to(dtype) for x in (query, key, normal(*shape), normal(*shape))]


def _text_mask(grid: TokenGrid, batch: int, device: str) -> Tensor | None:
    """Hides the last text token of the first batch entry, and all but the first of the others; None without text."""
    text = grid.text(device)
    if not len(text):
        return None
    mask = torch.ones(batch, grid.tokens, dtype=torch.bool, device=device)
    mask[0, text[-1]] = False
    mask[1:, text[1:]] = False
    return mask


class Poisoned:
    """Memory that is not written holds NaN, or the largest integer."""

    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)


def _error_of_dense(call: AttentionCall, residual: Tensor | None) -> float:
    from timeripple.attention import triton_backend

    query, key, value = map(_exact, (call.query, call.key, call.value))
    hidden = _hide(query.new_zeros(query.shape[:2]), call.key_mask)
    expected = exact_attention(query, key, value, lambda head, rows: hidden[head])
    return _error(partial(triton_backend.dense_attention, call), expected, residual)


def _error_of_plan(call: AttentionCall, config: ReuseConfig, saving: float | None, residual: Tensor | None) -> float:
    """saving: that the plan aims at, None for all that can be merged."""
    from timeripple.attention import triton_backend

    is_token = config.granularity == "token"  # whose kernel has a case of its own
    curve = token.measure(call, config, token.window_deviations) if is_token else config.measure(call)
    plan = curve.plan(call, 1e9 if saving is None else theta_for_saving([curve], saving))
    assert isinstance(plan, TokenPlan | TilePlan | ChannelPlan)  # as all of ours are
    return _error(partial(triton_backend.attention, call, plan), carried_out(call, plan), residual)


def _error(attention: Callable[..., Tensor], expected: Tensor, residual: Tensor | None) -> float:
    """residual: of unit size; it is added at the size of the output, so that neither hides the other."""
    if residual is not None:
        residual = residual * expected.std().to(residual.dtype)
        expected = expected + _exact(residual)
    with Poisoned():
        output = attention(residual=residual)
    return ((_exact(output) - expected).norm() / expected.norm()).item()


def _error_of_deviations(call: AttentionCall) -> float:
    """Of the thresholds; the subsets, too, must be those with the smallest deviation where a window is full."""
    from timeripple.attention import triton_planning

    video, weight = call.video_query, call.video_key.square().mean(1) / call.head_dim
    table, occupied = token.window_table(call.grid, call.device)
    expected, expected_subsets = token.window_deviations(video.double(), weight.double(), table, 7)
    with Poisoned():
        thresholds, subsets = triton_planning.window_deviations(video, weight, table, 7)
    full = occupied.all(1)
    differing = (subsets != expected_subsets)[:, full].double().mean().item() if full.any() else 0.0
    if differing > 1e-3:
        raise AssertionError(f"{differing:.2%} of the windows would merge along other axes")
    return ((thresholds - expected).norm() / expected.norm()).item()


# --- what a plan says, in float64 ------------------------------------------------------------------------------------


def carried_out(call: AttentionCall, plan: TokenPlan | TilePlan | ChannelPlan) -> Tensor:
    """A plan from its definition: [batch, heads, tokens, d] -> float64 [batch * heads, tokens, d]."""
    query, key, value = map(_exact, (call.query, call.key, call.value))
    heads, tokens, _ = query.shape
    plain = _hide(query.new_zeros(heads, tokens), call.key_mask)
    if isinstance(plan, ChannelPlan):
        return exact_attention(_exact(plan.query), _exact(plan.key), value, lambda head, rows: plain[head])
    if isinstance(plan, TokenPlan):
        sides = ((query, plan.query), (key, plan.key), (value, plan.key))
        queries, keys, values = (_merge(x, side) for x, side in sides)
        bias = plan.key.sizes.double().log().scatter_add(1, plan.key.owner, plain)
        output = exact_attention(queries, keys, values, lambda head, rows: bias[head])
        return output.gather(1, plan.query.owner[..., None].expand_as(query))
    sizes, video = plan.window_sizes, plan.grid.video
    means = [_block_mean(x[:, video], plan.window, sizes) for x in (key, value)]
    keys, values = (torch.cat([x, mean], dim=1) for x, mean in zip((key, value), means, strict=True))

    def bias_of(head: int, rows: slice) -> Tensor:
        """Keys of computed windows as they are, the others through their mean; text sees and is seen by all."""
        index = torch.arange(tokens, device=query.device)[rows] - video.start
        is_text = (index < 0) | (index >= plan.grid.video_tokens)
        computed = plan.computed[head, plan.tile[index.clamp(0, plan.grid.video_tokens - 1)]] | is_text[:, None]
        fine = plain[head].repeat(len(index), 1)
        fine[:, video] = fine[:, video].masked_fill(~computed[:, plan.window], -math.inf)
        coarse = sizes.double().log().expand(len(index), -1).masked_fill(computed, -math.inf)
        return torch.cat([fine, coarse], dim=1)

    return exact_attention(query, keys, values, bias_of)


def exact_attention(query: Tensor, key: Tensor, value: Tensor, bias_of: Callable[[int, slice], Tensor]) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v in float64, [heads, rows, d]; bias_of(head, rows of queries) -> [.., keys]."""
    output = torch.empty_like(query)
    for head in range(len(query)):
        for start in range(0, query.shape[1], QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            logits = query[head, rows] @ key[head].T / query.shape[-1] ** 0.5 + bias_of(head, rows)
            output[head, rows] = logits.softmax(-1) @ value[head]
    return output


def _exact(x: Tensor) -> Tensor:
    return x.flatten(0, 1).double()


def _merge(x: Tensor, side: Rows) -> Tensor:
    """Mean of the tokens of every row; rows without tokens are 0."""
    total = torch.zeros_like(x).scatter_add(1, side.owner[..., None].expand_as(x), x)
    return total / side.sizes.clamp(min=1)[..., None]


def _block_mean(x: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
    return x.new_zeros(len(x), len(sizes), x.shape[-1]).index_add(1, index, x) / sizes[:, None]


def _hide(bias: Tensor, mask: Tensor | None) -> Tensor:
    return bias if mask is None else bias.masked_fill(~mask.repeat_interleave(HEADS, dim=0), -math.inf)


def main(dtype: str, head_dim: str, device: str, *small: str) -> None:
    for case in cases(dtype, int(head_dim), device, bool(small)):
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
