"""The Triton kernels against the loops of reference.py in float64; in Triton's interpreter where there is no GPU."""

import math
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.attention.cases import CONFIGS, GRIDS
from timeripple.attention import AttentionCall, reference, ripple_attention, triton_backend, triton_planning
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.plans import token
from timeripple.attention.triton_backend import Blocks
from timeripple.attention.triton_planning import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}  # relative error


@pytest.fixture(autouse=True)
def small_blocks_and_poisoned_memory(monkeypatch):
    """Blocks that do not divide the sizes, and outputs full of NaN until written."""
    monkeypatch.setattr(triton_backend, "attend_blocks", lambda *_, **__: Blocks(16, 16, 4, 1))
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **kwargs: empty_like(x, **kwargs).fill_(math.nan))


def inputs(grid, head_dim, dtype, batch=2, heads=2):
    """q, k, v with something in common within a head, rounded to `dtype`, different in every run."""
    shape = (batch, heads, grid.tokens)
    query, key = (
        torch.randn(batch, heads, 1, head_dim) + 0.6 * torch.rand(*shape, 1) * torch.randn(*shape, head_dim)
        for _ in range(2)
    )
    return tuple(x.to(dtype).to(DEVICE) for x in (query, key, torch.randn(*shape, head_dim)))


def text_mask(grid):
    """Hides the last text token of the first batch entry, and all but the first of the second; None without text."""
    text = [i for i in range(grid.tokens) if not grid.video.start <= i < grid.video.stop]
    if not text:
        return None
    mask = torch.ones(2, grid.tokens, dtype=torch.bool)
    mask[0, text[-1]] = False
    mask[1, text[1:]] = False
    return mask.to(DEVICE)


def relative_error(output, expected):
    return ((output.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 20), (torch.float16, 48), (torch.bfloat16, 16)])
@pytest.mark.parametrize("theta", [0.1, 1e9])
def test_the_kernels_are_the_reference(grid, config, dtype, head_dim, theta):
    query, key, value = inputs(grid, head_dim, dtype)
    mask, residual = text_mask(grid), torch.randn_like(query)
    call = AttentionCall(query, key, value, grid, scale=0.3, key_mask=mask)
    plan = config.measure(call).plan(call, theta)
    output = triton_backend.attention(call, plan, residual=residual)
    exact = [x.double().cpu() for x in (query, key, value)]
    expected = torch.empty_like(exact[0])
    for head in range(4):
        carried_out(expected.view(4, grid.tokens, -1)[head], exact, plan, head, mask, 0.3)
    assert output.dtype == dtype
    assert relative_error(output.cpu(), expected + residual.double().cpu()) < TOLERANCE[dtype]


def carried_out(output, exact, plan, head, mask, scale):
    """What a plan says about one head, from its definition: rows, multiplicities and windows, in float64."""
    query, key, value = (x.flatten(0, 1)[head] for x in exact)
    hidden = torch.zeros(len(key), dtype=torch.float64)
    if mask is not None:
        hidden[~mask[head // 2].cpu()] = -math.inf
    kind = type(plan).__name__
    if kind == "ChannelPlan":
        query, key = (x.flatten(0, 1)[head].double().cpu() for x in (plan.query, plan.key))
        output[:] = reference.softmax_attention(query, key, value, hidden, scale)
    elif kind == "TokenPlan":
        query_groups, key_groups = (
            [(owner == row).nonzero()[:, 0].cpu() for row in range(count)]
            for owner, count in ((side.owner[head], side.counts[head]) for side in (plan.query, plan.key))
        )
        rows, keys, values = (
            torch.stack([x[group].mean(0) for group in groups])
            for x, groups in ((query, query_groups), (key, key_groups), (value, key_groups))
        )
        bias = torch.stack([math.log(len(group)) + hidden[group[0]] for group in key_groups])
        result = reference.softmax_attention(rows, keys, values, bias, scale)
        for group, row in zip(query_groups, result, strict=True):
            output[group] = row
    else:
        first, video = plan.grid.text_before, plan.grid.video
        text = [i for i in range(plan.grid.tokens) if not video.start <= i < video.stop]
        output[text] = reference.softmax_attention(query[text], key, value, hidden, scale)
        for tile, computed in enumerate(plan.computed[head]):
            rows = first + (plan.tile == tile).nonzero()[:, 0].cpu()
            windows = [first + (plan.window == w).nonzero()[:, 0].cpu() for w in range(len(computed))]
            members = [torch.tensor([i]) for i in text]
            for window, fine in zip(windows, computed, strict=True):
                members += list(window[:, None]) if fine else [window]
            keys, values = (torch.stack([x[m].mean(0) for m in members]) for x in (key, value))
            bias = torch.stack([math.log(len(m)) + hidden[m[0]] for m in members])
            output[rows] = reference.softmax_attention(query[rows], keys, values, bias, scale)


@pytest.mark.parametrize("tokens", [1, 16, 37])
@pytest.mark.parametrize("head_dim", [16, 24, 128, 256])
def test_the_dense_core_takes_any_size_and_any_strides(tokens, head_dim):
    grid = TokenGrid(1, 1, tokens)
    query, key, value = inputs(grid, head_dim, torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in (query, key, value)))
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    strided[2] = strided[2].mT.contiguous().mT
    output = triton_backend.dense_attention(AttentionCall(*strided, grid))
    assert relative_error(output, expected) < 1e-5


def test_skipped_windows_are_left_out():
    from timeripple.baselines.skip import SkipConfig

    grid = TokenGrid(4, 4, 4)
    query, key, value = inputs(grid, 16, torch.float32)
    config = SkipConfig(budget=0.5, query_tile=(2, 2, 2))
    call = AttentionCall(query, key, value, grid)
    plan = config.measure(call).plan(call, 0.6)
    assert 0 < plan.computed.float().mean() < 1
    output = triton_backend.attention(call, plan)
    seen = plan.computed[:, :, plan.window][:, plan.tile]  # [heads, queries, keys]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.double() for x in (query, key, value)), attn_mask=seen.view(2, 2, 64, 64)
    )
    assert relative_error(output, expected) < 1e-5


@pytest.mark.parametrize("axes", ["tyx", "ty", "x"])
@pytest.mark.parametrize("grid", [TokenGrid(4, 6, 4), TokenGrid(3, 5, 3, text_before=2, text_after=3)])
@pytest.mark.parametrize("metric", ["rms", "logit"])
def test_window_statistics_are_those_of_the_plan(axes, grid, metric):
    call = AttentionCall(*inputs(grid, 20, torch.float32), grid)
    config = ReuseConfig(axes=axes, metric=metric, budget=0.4)
    expected = token.measure(call, config, deviations=token.window_deviations)
    curve = token.measure(call, config, deviations=triton_planning.window_deviations)
    for side in ("query", "key"):
        merges, wanted = getattr(curve, side), getattr(expected, side)
        torch.testing.assert_close(merges.thresholds, wanted.thresholds, rtol=1e-5, atol=1e-6)
        assert torch.equal(merges.subsets, wanted.subsets)


class Waits(TorchDispatchMode):
    """Notes operations whose result the host needs, at which it would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique_dim", "repeat_interleave"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("granularity", ["token", "tile"])
@pytest.mark.parametrize("saving", [0.4, 0.6])
def test_the_host_waits_for_nothing(granularity, saving, monkeypatch):
    launches = MagicMock()  # the interpreter would read arguments of kernels on the host
    monkeypatch.setattr(triton_backend, "kernels", launches)
    grid = TokenGrid(4, 4, 4, text_after=2)
    qkv = inputs(grid, 16, torch.float32)
    config = ReuseConfig(granularity, budget=saving, query_tile=(2, 2, 2), refresh=None)
    with Waits() as waits:
        _, statistics = ripple_attention(AttentionCall(*qkv, grid), config, backend="triton")
    assert waits.found == [] and launches.attend.__getitem__.called
    with waits:
        assert statistics.saving.mean().item() == pytest.approx(saving, abs=0.05)
    assert waits.found == ["_local_scalar_dense"]
