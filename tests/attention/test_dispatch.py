import pytest
import torch

from timeripple.attention import ripple_attention
from timeripple.config import ReuseConfig
from timeripple.grid import TokenGrid

GRID = TokenGrid(4, 4, 4, 2)


def inputs(heads=3):
    torch.manual_seed(0)
    return tuple(torch.randn(2, heads, GRID.tokens, 8) for _ in range(3))


@pytest.mark.parametrize("granularity", ["token", "tile", "channel"])
def test_statistics(granularity):
    config = ReuseConfig(granularity, budget=0.5)
    output, statistics = ripple_attention(*inputs(), GRID, config, saving=0.4)
    assert output.shape == (2, 3, GRID.tokens, 8)
    assert statistics.saving.shape == (3,)
    assert statistics.saving.mean().item() == pytest.approx(0.4, abs=0.02)
    assert statistics.kind == ("theoretical" if granularity == "channel" else "realised")
    assert statistics.theta > 0
    assert statistics.plan_seconds > 0 and statistics.attention_seconds > 0
    torch.testing.assert_close(statistics.curve.saving(statistics.theta), statistics.saving)


def test_statistics_average_over_the_batch():
    query, key, value = inputs()
    config = ReuseConfig(theta=0.5)
    _, both = ripple_attention(query, key, value, GRID, config)
    each = [ripple_attention(query[i : i + 1], key[i : i + 1], value[i : i + 1], GRID, config)[1] for i in range(2)]
    torch.testing.assert_close(both.saving, (each[0].saving + each[1].saving) / 2)


def test_the_config_speaks_where_the_call_does_not():
    _, by_budget = ripple_attention(*inputs(), GRID, ReuseConfig(budget=0.6))
    _, by_saving = ripple_attention(*inputs(), GRID, ReuseConfig(), saving=0.6)
    assert by_budget.theta == by_saving.theta
    _, by_theta = ripple_attention(*inputs(), GRID, ReuseConfig(theta=0.4))
    assert by_theta.theta == 0.4
    _, overruled = ripple_attention(*inputs(), GRID, ReuseConfig(theta=0.4), theta=0.3)
    assert overruled.theta == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": 0.1, "saving": 0.5}, "theta 0.1 and saving 0.5 exclude each other"),
        ({"backend": "abacus"}, "'abacus' is unknown; choose auto"),
        ({"grid": TokenGrid(4, 4, 4)}, r"query of shape \(2, 3, 66, 8\) does not fit .* 64"),
        ({"key_mask": torch.zeros(2, 66, dtype=torch.bool)}, "hides video tokens"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        ripple_attention(*inputs(), **{"grid": GRID, "config": ReuseConfig(), **change})


def test_a_mask_that_hides_nothing_is_none():
    mask = torch.ones(2, GRID.tokens, dtype=torch.bool)
    output, _ = ripple_attention(*inputs(), GRID, ReuseConfig(theta=0.4), key_mask=mask)
    assert torch.equal(output, ripple_attention(*inputs(), GRID, ReuseConfig(theta=0.4))[0])
