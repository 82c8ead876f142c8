from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timeripple.attention import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.plans.tile import block_mean, window_probability
from timeripple.attention.reference import blocks, merge_window

GRIDS = [TokenGrid(4, 4, 4), TokenGrid(3, 5, 2, 3, 2), TokenGrid(1, 4, 3), TokenGrid(1, 1, 5, 1)]
CONFIGS = [
    ReuseConfig("token"),
    ReuseConfig("token", metric="rms", axes="ty"),
    ReuseConfig("tile", budget=0.5, query_tile=(2, 2, 2)),
    ReuseConfig("tile", budget=0.4, axes="yx", query_tile=(2, 3, 2)),
    ReuseConfig("channel"),
    ReuseConfig("channel", window=3, axes="tx"),
]
THETAS = [0.05, 0.2, 0.4, 0.8, 1e9]


def call_of(query, key, grid, **options):
    """A call with any values."""
    return AttentionCall(query, key, key, grid, **options)


def query_and_key(grid, batch=2, heads=2, channels=6, seed=0):
    """Tokens with something in common, so that thresholds between 0 and 1 matter."""
    generator = torch.Generator().manual_seed(seed)

    def rows():
        shape = (batch, heads, grid.tokens)
        own = torch.randn(*shape, channels, generator=generator, dtype=torch.float64)
        shared = torch.randn(batch, heads, 1, channels, generator=generator, dtype=torch.float64)
        return shared + 0.5 * torch.rand(*shape, 1, generator=generator, dtype=torch.float64) * own

    return rows(), rows()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("axes", ["tyx", "yx", "t"])
def test_every_token_has_one_owner_and_rows_are_what_owners_say(grid, theta, axes):
    query, key = query_and_key(grid)
    plan = ReuseConfig(axes=axes, budget=0.5).measure(call_of(query, key, grid)).plan(call_of(query, key, grid), theta)
    for side in (plan.query, plan.key):
        assert side.owner.shape == (4, grid.tokens)
        assert side.sizes.sum() == 4 * grid.tokens
        assert side.sizes.max() <= 2 ** len(axes)
        for owner, sizes, count in zip(side.owner, side.sizes, side.counts.tolist(), strict=True):
            assert owner.unique().tolist() == list(range(count))
            assert torch.bincount(owner, minlength=grid.tokens).tolist() == sizes.tolist()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axes", ["tyx", "ty", "x"])
@pytest.mark.parametrize("metric", ["rms", "logit"])
def test_windows_merge_along_the_coarsest_subset_below_theta(grid, axes, metric):
    query, key = query_and_key(grid, batch=1)
    scale = 0.3
    curve = ReuseConfig(axes=axes, metric=metric, budget=0.4).measure(call_of(query, key, grid, scale=scale))
    for theta in THETAS:
        plan = curve.plan(call_of(query, key, grid), theta)
        for x, other, side in ((query, key, plan.query), (key, query, plan.key)):
            for head in range(2):
                weight = torch.full((6,), 1 / 6, dtype=torch.float64)
                if metric == "logit":
                    weight = scale**2 * other[0, head, grid.video].square().mean(0)
                expected = {(token,) for token in range(grid.tokens)} - {(i,) for i in range(grid.tokens)[grid.video]}
                for window in blocks(grid, (2, 2, 2)):
                    expected |= {tuple(group) for group in merge_window(window, x[0, head], weight, axes, theta)}
                owner = side.owner[head]
                assert {tuple((owner == row).nonzero()[:, 0].tolist()) for row in owner.unique()} == expected


def test_deviation_by_hand():
    """Neighbours along x differ by 2 in one channel of two; a key channel of 3 weighs the logit by 9 / d."""
    grid = TokenGrid(1, 1, 2)
    query = torch.tensor([[[[1.0, 0.0], [3.0, 0.0]]]])
    key = torch.tensor([[[[3.0, 7.0], [3.0, 7.0]]]])
    rms = ReuseConfig(metric="rms").measure(call_of(query, key, grid))
    torch.testing.assert_close(rms.query.thresholds[0, 0, -1], torch.tensor(0.5**0.5))
    logit = ReuseConfig(metric="logit").measure(call_of(query, key, grid))
    torch.testing.assert_close(logit.query.thresholds[0, 0, -1], torch.tensor((9 / 2) ** 0.5))
    assert logit.key.thresholds.tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
def test_curve_is_the_saving_of_the_plan(grid, config):
    query, key = query_and_key(grid)
    curve = config.measure(call_of(query, key, grid))
    for theta in THETAS:
        torch.testing.assert_close(curve.saving(theta), curve.plan(call_of(query, key, grid), theta).saving)
    several = curve.saving(torch.tensor(THETAS))
    torch.testing.assert_close(several, torch.stack([curve.saving(theta) for theta in THETAS], dim=1))
    assert (several.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
def test_thresholds_are_strict(config):
    """Reusing takes a deviation below theta, not equal to it: at the smallest threshold nothing is reused yet."""
    grid = TokenGrid(4, 4, 4)
    query, key = query_and_key(grid)
    curve = config.measure(call_of(query, key, grid))
    nothing = curve.saving(0.0)
    assert torch.equal(curve.saving(1e-6), nothing)
    assert (curve.saving(curve.highest * 1.01) > nothing).all()
    torch.testing.assert_close(curve.plan(call_of(query, key, grid), curve.highest).saving, curve.saving(curve.highest))
    assert (curve.saving(curve.highest).mean() < curve.saving(curve.highest * 1.01).mean()).item()
    assert torch.equal(
        nothing, torch.full_like(nothing, -len(curve.window_sizes) / 64 if hasattr(curve, "tile") else 0)
    )


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda config: config.label)
def test_full_reuse_saves_the_ceiling(config):
    grid = TokenGrid(4, 4, 4)
    query, key = query_and_key(grid)
    saving = config.measure(call_of(query, key, grid)).saving(1e9)
    torch.testing.assert_close(saving, torch.full_like(saving, config.ceiling))


@pytest.mark.parametrize("granularity", ["token", "channel"])
def test_equal_neighbours_are_reused_at_the_smallest_threshold(granularity):
    grid = TokenGrid(4, 4, 4, 2)
    query, key = (x[:, :, :1].repeat(1, 1, grid.tokens, 1) for x in query_and_key(grid))
    saving = ReuseConfig(granularity).measure(call_of(query, key, grid)).saving(1e-6)
    kept = (8 + 2) / 66
    torch.testing.assert_close(saving, torch.full_like(saving, 1 - kept**2))


@pytest.mark.parametrize("grid", GRIDS[:2])
def test_tile_saving_counts_rows_visited(grid):
    config = ReuseConfig("tile", budget=0.5, query_tile=(2, 2, 2))
    query, key = query_and_key(grid, batch=1)
    plan = config.measure(call_of(query, key, grid)).plan(call_of(query, key, grid), 0.1)
    assert 0 < plan.computed.float().mean() < 1
    windows, tiles = blocks(grid, (2, 2, 2)), blocks(grid, config.query_tile)
    text = grid.tokens - grid.video_tokens
    for head, saving in enumerate(plan.saving):
        visited = text * grid.tokens
        for (t, tile), (w, window) in product(enumerate(tiles), enumerate(windows)):
            visited += len(tile) * (1 + (len(window) if plan.computed[head, t, w] else 0))
        visited += text * grid.video_tokens
        assert saving.item() == pytest.approx(1 - visited / grid.tokens**2)


def test_tiles_compute_the_fewest_windows_that_leave_the_error_below_theta():
    grid = TokenGrid(2, 4, 4)
    query, key = query_and_key(grid, batch=1, heads=1)
    config = ReuseConfig("tile", budget=0.5, query_tile=(2, 2, 2))
    probability = window_probability(call_of(query, key, grid), config)
    window, sizes = grid.block_index((2, 2, 2))
    mean_square = block_mean(query[0].square(), window, sizes)
    centred = key[0] - block_mean(key[0], window, sizes)[:, window]
    error = probability * (mean_square @ block_mean(centred.square(), window, sizes).mT / 6).sqrt()
    for theta in (0.01, 0.05, 0.1, 0.2):
        computed = config.measure(call_of(query, key, grid)).plan(call_of(query, key, grid), theta).computed
        for tile in range(4):
            left = error[0, tile][~computed[0, tile]].sum()
            assert left < theta
            fewest = min(
                4 - n
                for n in range(5)
                for reused in combinations(range(4), n)
                if sum(error[0, tile, w] for w in reused) < theta
            )
            assert computed[0, tile].sum() == fewest


def test_masked_text_gets_no_probability():
    grid = TokenGrid(2, 2, 4, 1, 2)
    query, key = query_and_key(grid)
    config = ReuseConfig("tile", budget=0.5)
    mask = torch.ones(2, grid.tokens, dtype=torch.bool)
    assert (window_probability(call_of(query, key, grid, key_mask=mask), config).sum(-1) < 1).all()
    mask[1, : grid.video.start] = mask[1, grid.video.stop :] = False
    total = window_probability(call_of(query, key, grid, key_mask=mask), config).sum(-1).view(2, -1)
    assert (total[0] < 0.999).all()
    torch.testing.assert_close(total[1], torch.ones_like(total[1]))


@settings(max_examples=25, deadline=None)
@given(
    target=st.floats(0.02, 0.8),
    config=st.sampled_from(CONFIGS[::2]),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_theta_for_saving_hits_the_target_over_all_layers(target, config, seeds):
    grid = TokenGrid(4, 4, 8)
    inputs = [query_and_key(grid, seed=seed) for seed in seeds]
    curves = [config.measure(call_of(query * (1 + layer), key, grid)) for layer, (query, key) in enumerate(inputs)]
    theta = theta_for_saving(curves, target)

    def saving(theta):
        return torch.stack([curve.saving(theta) for curve in curves]).mean().item()

    assert saving(theta) >= target - 1e-12
    assert saving(theta * (1 - 1e-4)) < target + 1e-12
    assert saving(theta) - target < 0.05  # as fine as one window's step


def test_theta_for_saving_at_the_ends():
    grid = TokenGrid(4, 4, 4)
    query, key = query_and_key(grid)
    curve = ReuseConfig().measure(call_of(query, key, grid))
    assert theta_for_saving([curve], 0.0) == 0
    assert theta_for_saving([curve], -0.2) == 0
    torch.testing.assert_close(curve.saving(theta_for_saving([curve], 0.999)), curve.saving(1e9))


def test_a_sampled_channel_curve_is_close():
    grid = TokenGrid(4, 32, 32)
    query, key = query_and_key(grid, batch=1, heads=1, channels=4)
    curve = ReuseConfig("channel").measure(call_of(query, key, grid))
    assert curve.query.thresholds.shape[1] == 2048
    for theta in (0.1, 0.2, 0.4):
        exact = curve.plan(call_of(query, key, grid), theta).saving
        torch.testing.assert_close(curve.saving(theta), exact, atol=0.02, rtol=0)
