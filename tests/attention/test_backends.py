"""Every backend and granularity against the loops of reference.py, through the one door."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.attention.cases import CONFIGS as CASES
from tests.attention.cases import GRIDS
from timeripple.attention import AttentionCall, reference, ripple_attention
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid

CONFIGS = [*CASES, ReuseConfig("channel", theta=0.3, window=3, axes="xt")]


def inputs(grid, batch=2, heads=2, channels=6, dtype=torch.float64):
    torch.manual_seed(0)
    shape = (batch, heads, grid.tokens)
    query, key = (
        torch.randn(batch, heads, 1, channels) + 0.6 * torch.rand(*shape, 1) * torch.randn(*shape, channels)
        for _ in range(2)
    )
    value = torch.randn(*shape, channels)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def text_mask(grid, batch=2):
    """Hides the last text token of the first batch entry, and all but the first of the others."""
    text = [i for i in range(grid.tokens) if not grid.video.start <= i < grid.video.stop]
    mask = torch.ones(batch, grid.tokens, dtype=torch.bool)
    mask[0, text[-1]] = False
    mask[1:, text[1:]] = False
    return mask


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
@pytest.mark.parametrize("theta", [0.02, 0.1, 0.3, 1e9])
def test_torch_backend_is_the_reference(grid, config, theta):
    query, key, value = inputs(grid)
    masks = [None, text_mask(grid)] if grid.tokens > grid.video_tokens else [None]
    for key_mask, scale in [(mask, scale) for mask in masks for scale in (None, 0.7)]:
        call = AttentionCall(query, key, value, grid, scale, key_mask)
        output, statistics = ripple_attention(call, config, backend="torch", theta=theta)
        expected, reference_statistics = ripple_attention(call, config, backend="reference", theta=theta)
        torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(statistics.saving, reference_statistics.saving)


@pytest.mark.parametrize("grid", [TokenGrid(4, 4, 4), TokenGrid(3, 4, 4), TokenGrid(4, 4, 2, 2, 3)], ids=str)
def test_heads_that_merge_nothing_some_and_all(grid):
    """Rows of one size need no bias of their own; masked text and heads beside them do."""
    torch.manual_seed(0)
    noise = torch.randn(2, 3, grid.tokens, 6, dtype=torch.float64)
    amount = torch.stack([torch.ones(grid.tokens), torch.rand(grid.tokens) ** 3, torch.zeros(grid.tokens)])
    query = torch.ones_like(noise) + amount[:, :, None] * noise
    key = torch.ones_like(noise) + amount[:, :, None] * noise.flip(-1)
    masks = [None, text_mask(grid)] if grid.tokens > grid.video_tokens else [None]
    for mask in masks:
        call = AttentionCall(query, key, noise, grid, key_mask=mask)
        output, statistics = ripple_attention(call, ReuseConfig("token", theta=0.25), backend="torch")
        expected, _ = ripple_attention(call, ReuseConfig("token", theta=0.25), backend="reference")
        none, some, everything = statistics.saving
        assert none < some < everything
        torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda config: config.label)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_other_precisions_and_strided_inputs(config, dtype, tolerance):
    grid = TokenGrid(2, 4, 4, 2)
    query, key, value = inputs(grid)
    expected, _ = ripple_attention(AttentionCall(query, key, value, grid), config, theta=1e9)
    strided = [x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    output, _ = ripple_attention(AttentionCall(*strided, grid), config, theta=1e9)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
@pytest.mark.parametrize("amount", [{"theta": 0}, {"saving": 0.0}])
def test_nothing_reused_is_dense_to_the_bit(config, amount):
    grid = TokenGrid(3, 4, 2, 1, 2)
    query, key, value = inputs(grid, dtype=torch.float32)
    output, statistics = ripple_attention(AttentionCall(query, key, value, grid), config, **amount)
    assert torch.equal(output, scaled_dot_product_attention(query, key, value))
    assert statistics.saving.tolist() == [0, 0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
def test_a_tiny_threshold_on_unequal_tokens_is_dense(config):
    grid = TokenGrid(2, 4, 4, 1, 2)
    query, key, value = inputs(grid)
    output, _ = ripple_attention(AttentionCall(query, key, value, grid), config, theta=1e-12)
    torch.testing.assert_close(output, scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda config: config.label)
def test_equal_tokens_collapse_and_stay_exact(config):
    """Identical q and k of the video: everything is reused, whatever the values, and the output is still dense."""
    grid = TokenGrid(4, 4, 4, 2, 1)
    query, key, value = inputs(grid)
    query[:, :, grid.video], key[:, :, grid.video] = query[:, :, 5:6], key[:, :, 7:8]
    output, statistics = ripple_attention(AttentionCall(query, key, value, grid), config, theta=1e-6)
    torch.testing.assert_close(output, scaled_dot_product_attention(query, key, value))
    text, video = 3, 64
    rows = text + video / 8
    visited = {"tile": (text * (text + video) + video * rows) / (text + video) ** 2}
    expected = 1 - visited.get(config.granularity, (rows / (text + video)) ** 2)
    torch.testing.assert_close(statistics.saving, torch.full((2,), expected, dtype=torch.float64))


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda config: config.label)
def test_masked_text_does_not_enter(config):
    grid = TokenGrid(2, 4, 4, 2, 3)
    query, key, value = inputs(grid)
    mask = text_mask(grid)
    expected, _ = ripple_attention(AttentionCall(query, key, value, grid, key_mask=mask), config, theta=0.2)
    for x, change in ((key, 5.0), (value, 100.0)):
        x += change * ~mask[:, None, :, None]
    output, _ = ripple_attention(AttentionCall(query, key, value, grid, key_mask=mask), config, theta=0.2)
    torch.testing.assert_close(output, expected)


def test_skipping_leaves_windows_out():
    grid = TokenGrid(2, 4, 4, 1)
    query, key, value = inputs(grid, batch=1, heads=1)
    call = AttentionCall(query, key, value, grid)
    plan = ReuseConfig("tile", theta=0.1, query_tile=(2, 2, 2)).measure(call).plan(call, 0.1)
    assert 0 < plan.computed.float().mean() < 1
    plan.computed[..., 0] = True
    skipping = type(plan)(**{**vars(plan), "skip": True})
    output = skipping.carry_out(call)
    for tile in range(len(plan.tile_sizes)):
        rows = grid.with_text(plan.tile, -1) == tile
        keys = grid.with_text(plan.computed[0, tile, plan.window], True)
        expected = scaled_dot_product_attention(query[:, :, rows], key[:, :, keys], value[:, :, keys])
        torch.testing.assert_close(output[:, :, rows], expected)
    assert not torch.allclose(output, plan.carry_out(call))


def test_gradients_go_through_merged_rows():
    """As where a model is trained, or called without no_grad."""
    grid = TokenGrid(4, 4, 4, 2)
    query, key, value = (x.float().requires_grad_() for x in inputs(grid, batch=1))
    with torch.inference_mode():  # what is kept of a grid serves both
        ripple_attention(AttentionCall(query.detach(), key.detach(), value, grid), ReuseConfig("token", theta=0.2))
    output, statistics = ripple_attention(AttentionCall(query, key, value, grid), ReuseConfig("token", theta=0.2))
    assert 0 < statistics.saving.mean() < 1
    output.sum().backward()
    assert all(torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0 for x in (query, key, value))


def test_reference_attention_is_softmax():
    query, key, value = (x[0, 0] for x in inputs(GRIDS[0]))
    output = reference.softmax_attention(query, key, value, torch.zeros(64), 6**-0.5)
    torch.testing.assert_close(output, scaled_dot_product_attention(query, key, value))
