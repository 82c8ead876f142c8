import pytest
import torch

from timeripple.attention import AttentionCall, ripple_attention
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid

GRID = TokenGrid(4, 4, 4, 2)


def inputs(heads=3):
    torch.manual_seed(0)
    return tuple(torch.randn(2, heads, GRID.tokens, 8) for _ in range(3))


@pytest.mark.parametrize("granularity", ["token", "tile", "channel"])
def test_statistics(granularity):
    config = ReuseConfig(granularity, budget=0.5)
    output, statistics = ripple_attention(AttentionCall(*inputs(), GRID), config, saving=0.4)
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
    _, both = ripple_attention(AttentionCall(query, key, value, GRID), config)
    each = [
        ripple_attention(AttentionCall(*(x[i : i + 1] for x in (query, key, value)), GRID), config)[1] for i in range(2)
    ]
    torch.testing.assert_close(both.saving, (each[0].saving + each[1].saving) / 2)


def test_the_config_speaks_where_the_call_does_not():
    _, by_budget = ripple_attention(AttentionCall(*inputs(), GRID), ReuseConfig(budget=0.6))
    _, by_saving = ripple_attention(AttentionCall(*inputs(), GRID), ReuseConfig(), saving=0.6)
    assert by_budget.theta == by_saving.theta
    _, by_theta = ripple_attention(AttentionCall(*inputs(), GRID), ReuseConfig(theta=0.4))
    assert by_theta.theta == 0.4
    _, overruled = ripple_attention(AttentionCall(*inputs(), GRID), ReuseConfig(theta=0.4), theta=0.3)
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
        call = {"grid": GRID} | {name: change.pop(name) for name in ("grid", "key_mask") if name in change}
        ripple_attention(AttentionCall(*inputs(), **call), ReuseConfig(), **change)


def test_a_mask_that_hides_nothing_is_none():
    mask = torch.ones(2, GRID.tokens, dtype=torch.bool)
    output, _ = ripple_attention(AttentionCall(*inputs(), GRID, key_mask=mask), ReuseConfig(theta=0.4))
    assert torch.equal(output, ripple_attention(AttentionCall(*inputs(), GRID), ReuseConfig(theta=0.4))[0])


def test_a_residual_is_added():
    residual = torch.randn(2, 3, GRID.tokens, 8)
    for backend in ("torch", "triton", "reference"):
        for theta in (0.0, 0.9):
            plain, _ = ripple_attention(AttentionCall(*inputs(), GRID), ReuseConfig(theta=theta), backend=backend)
            added, _ = ripple_attention(
                AttentionCall(*inputs(), GRID), ReuseConfig(theta=theta), backend=backend, residual=residual
            )
            torch.testing.assert_close(added, plain + residual)


def test_a_plan_made_before_is_carried_out():
    query, key, value = inputs()
    config = ReuseConfig(budget=0.5)
    _, statistics = ripple_attention(AttentionCall(query, key, value, GRID), config)
    output, again = ripple_attention(AttentionCall(query.flip(1), key, value, GRID), config, plan=statistics.plan)
    torch.testing.assert_close(again.saving, statistics.saving)
    assert again.saving.mean().item() == pytest.approx(0.5, abs=0.02)
    assert again.curve is None and again.plan is statistics.plan
    own, _ = ripple_attention(AttentionCall(query.flip(1), key, value, GRID), config)
    assert not torch.allclose(output, own)


def test_auto_falls_back_with_one_warning_where_triton_fails(monkeypatch):
    from timeripple.attention import dispatch, triton_backend

    def fail(*arguments, **keywords):
        raise RuntimeError("out of\nshared memory")

    monkeypatch.setattr(triton_backend, "attention", fail)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    config = ReuseConfig(theta=0.9)
    expected, statistics = ripple_attention(AttentionCall(*inputs(), GRID), config, backend="torch")
    with pytest.warns(UserWarning, match="PyTorch's attention is used instead: out of shared memory"):
        output, fallen = dispatch.ripple_attention(AttentionCall(*inputs(), GRID), config)
    assert torch.equal(output, expected) and fallen.backend == statistics.backend == "torch"
    with pytest.raises(RuntimeError, match="shared memory"):
        ripple_attention(AttentionCall(*inputs(), GRID), config, backend="triton")
