"""Skipping against attention with an explicit mask."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from timeripple import ReuseConfig, disable, enable, summary
from timeripple.attention import AttentionCall, ripple_attention
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import ConfigError
from timeripple.attention.plans.tile import window_probability
from timeripple.baselines import SkipConfig

GRID = TokenGrid(3, 5, 6, text_after=4)
CONFIG = SkipConfig(query_tile=(2, 2, 4))


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 2, GRID.tokens, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("theta", [0.01, 0.2, 0.6, 10.0])
def test_skipped_windows_are_masked_out_and_counted(theta):
    query, key, value = tensors()
    call = AttentionCall(query, key, value, GRID)
    output, statistics = ripple_attention(call, CONFIG, theta=theta)

    probability = window_probability(call, CONFIG)
    tile, _ = GRID.block_index(CONFIG.query_tile)
    window, _ = GRID.block_index((2, 2, 2))
    mask = torch.ones(4, GRID.tokens, GRID.tokens, dtype=torch.bool)
    for head, tiles in enumerate(probability):
        for number, shares in enumerate(tiles):
            missed, rising = 0.0, shares.argsort().tolist()
            for w in rising[:-1]:
                missed += shares[w]
                if missed < theta:
                    rows, columns = (tile == number).nonzero(), (window == w).nonzero()
                    mask[head, rows, columns.T] = False
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask.view(2, 2, *mask.shape[1:]))
    torch.testing.assert_close(output, expected)
    saving = 1 - mask.double().mean((1, 2)).view(2, 2).mean(0)
    torch.testing.assert_close(statistics.saving, saving)
    torch.testing.assert_close(statistics.curve.saving(theta), saving)


@pytest.mark.parametrize("refresh", [None, 2])
def test_in_a_pipeline(tiny_pipeline, refresh):
    def generate():
        generator = torch.Generator().manual_seed(0)
        sizes = {"num_frames": 13, "height": 64, "width": 64, "num_inference_steps": 8}
        return tiny_pipeline("a red ball", generator=generator, output_type="latent", **sizes).frames

    dense = generate()
    enable(tiny_pipeline, SkipConfig(budget=0.4, refresh=refresh, query_tile=(2, 4, 4)))
    skipped = generate()
    numbers = summary(tiny_pipeline)
    disable(tiny_pipeline)
    assert not torch.equal(skipped, dense) and torch.equal(generate(), dense)
    assert numbers["method"].startswith("skip-0.4") and numbers["saving"]["kind"] == "realised"
    assert numbers["saving"]["reuse_steps"] == pytest.approx(0.4, abs=0.05)
    residuals = 2 * 2 * (4 * 8 * 8) * 48 * 4  # passes, layers, tokens, channels, float32
    assert (numbers["held_bytes"] > residuals) == (refresh is not None)


def test_parse_and_label():
    assert SkipConfig.parse("skip") == SkipConfig() and SkipConfig().label == "skip-0.75"
    config = SkipConfig.parse("skip:0.7:refresh=5")
    assert config == SkipConfig(budget=0.7, refresh=5) and config.label == "skip-0.7-refresh=5"
    assert SkipConfig.parse("skip:theta=0.1:query_tile=2x4x4").label == "skip-theta=0.1-query_tile=2x4x4"


def test_schedule_is_ours():
    ours = ReuseConfig("tile", budget=0.6, refresh=5)
    assert SkipConfig(budget=0.6, refresh=5).schedule(20) == ours.schedule(20)
    within_reach_without_representatives = SkipConfig(budget=0.7, refresh=5).schedule(20)
    assert within_reach_without_representatives[4].saving_target == pytest.approx((0.7 * 17 + 3) / 17)


@pytest.mark.parametrize("settings", ["axes=ty", "metric=rms", "window=4", "2", "0.5:theta=1", "refresh=x"])
def test_settings_that_do_not_fit(settings):
    with pytest.raises(ConfigError, match=settings.split(":")[-1].split("=")[0]):
        SkipConfig.parse(f"skip:{settings}")
