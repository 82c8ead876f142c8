import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from timeripple.attention import AttentionCall, ReuseRun, ripple_attention
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.plans import tile, token
from timeripple.attention.records import summarise_saving

GRID = TokenGrid(4, 4, 4)


def tensors(seed, drift=0.0, step=0):
    """q, k, v of a layer, moving slowly from step to step."""
    generator = torch.Generator().manual_seed(seed)
    start, direction = (torch.randn(3, 1, 2, GRID.tokens, 8, generator=generator) for _ in range(2))
    return (start + drift * step * direction).unbind(0)


def generate(config, steps, drift=0.0, passes=("cond",), layers=2, run=None):
    """One generation: the run, and per step, pass and layer the outputs and the dense ones."""
    run = run or ReuseRun(config, steps)
    outputs = {}
    for step in range(steps):
        for number, name in enumerate(passes):
            run.begin_forward(name, step)
            for layer in range(layers):
                qkv = tensors(10 * number + layer, drift, step)
                dense = scaled_dot_product_attention(*qkv)
                outputs[step, name, layer] = run.attention(f"layer{layer}", AttentionCall(*qkv, GRID)), dense
            run.end_forward()
    return run, outputs


@pytest.mark.parametrize("granularity", ["token", "tile", "channel"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_same_inputs_give_the_dense_output_with_feedback(granularity, steps):
    theta = {"token": 1.0, "tile": 0.3, "channel": 0.5}[granularity]
    run, outputs = generate(ReuseConfig(granularity, theta=theta, refresh=3, ramp=0, query_tile=(2, 2, 2)), steps)
    for output, dense in outputs.values():
        torch.testing.assert_close(output, dense)
    for record in run.records:
        assert record["kind"] != "reuse" or min(record["saving"]) > 0.1


def test_without_feedback_the_error_stays():
    run, outputs = generate(ReuseConfig(theta=1.0, refresh=None, ramp=0), 6)
    for (step, _, layer), (output, dense) in outputs.items():
        if run.steps[step].kind == "reuse":
            expected, _ = ripple_attention(AttentionCall(*tensors(layer), GRID), run.config, theta=1.0)
            torch.testing.assert_close(output, expected)
            assert not torch.allclose(output, dense, atol=1e-2)
        else:
            assert torch.equal(output, dense)
    assert run.held_bytes == 0


@pytest.mark.parametrize("extrapolate", [False, True])
def test_a_reuse_step_adds_the_error_of_the_last_refresh(extrapolate):
    config = ReuseConfig(theta=1.0, refresh=2, ramp=0, dense_first=0, dense_last=0, extrapolate=extrapolate)
    run, outputs = generate(config, 4, drift=0.05)
    assert [step.kind for step in run.steps] == ["refresh", "reuse", "refresh", "reuse"]

    def reused(step):
        """With the plan of the first refresh."""
        call = AttentionCall(*tensors(0), GRID)
        plan = config.measure(call).plan(call, 1.0)
        return ripple_attention(AttentionCall(*tensors(0, 0.05, step), GRID), config, plan=plan)[0]

    errors = {step: outputs[step, "cond", 0][1] - reused(step) for step in (0, 2)}
    assert errors[0].abs().max() > 0.1
    expected = errors[2] + (errors[2] - errors[0]) / 2 if extrapolate else errors[2]  # one step on, of two
    torch.testing.assert_close(outputs[1, "cond", 0][0], reused(1) + errors[0])
    torch.testing.assert_close(outputs[3, "cond", 0][0], reused(3) + expected)
    for step in (0, 2):
        assert torch.equal(*outputs[step, "cond", 0])


@pytest.mark.parametrize("granularity", ["token", "tile"])
def test_with_feedback_a_layer_plans_once_in_a_run(granularity, monkeypatch):
    plans, carry_out = {}, token.TokenPlan.carry_out if granularity == "token" else tile.TilePlan.carry_out

    def noted(plan, call):
        plans.setdefault((run._step.index, run._name), []).append(id(plan))
        return carry_out(plan, call)

    config = ReuseConfig(granularity, budget=0.6, query_tile=(2, 2, 2))
    run = ReuseRun(config, 10)
    monkeypatch.setattr(token.TokenPlan if granularity == "token" else tile.TilePlan, "carry_out", noted)
    generate(config, 10, drift=0.1, run=run, passes=("cond", "uncond"))
    first = plans[1, "cond"]  # the second of two dense steps measures the error
    assert len(set(first)) == 2  # layers
    assert len(plans) == 2 * 9 and all(found == first for found in plans.values())


def test_a_ramp_plans_anew_where_it_asks_for_another_amount(monkeypatch):
    calls, measure = [], ReuseConfig.measure

    def counted(config, call):
        calls.append(run._step.index)
        return measure(config, call)

    monkeypatch.setattr(ReuseConfig, "measure", counted)
    config = ReuseConfig(theta=1.0, refresh=3, ramp=0.5, dense_first=0.25, dense_last=1)
    run = ReuseRun(config, 8)
    assert "".join(step.kind[0:3] for step in run.steps) == "denrefreureurefreureuden"
    generate(config, 8, drift=0.05, layers=1, run=run, passes=("cond", "uncond"))
    assert calls == [1, 3, 4, 5, 6]


@pytest.mark.parametrize("granularity", ["token", "tile"])
def test_an_error_that_is_linear_in_time_is_given_back_exactly(granularity):
    """Attention is linear in the values: where these alone change, linearly in time, so does the error of one plan."""
    times = [1.0, 0.95, 0.7, 0.6, 0.3, 0.0]
    config = ReuseConfig(granularity, theta={"token": 1.0, "tile": 0.3}[granularity], refresh=2, query_tile=(2, 2, 2))
    run = ReuseRun(config, 6)
    assert [step.kind[:3] for step in run.steps] == ["ref", "reu", "ref", "reu", "ref", "reu"]
    run.set_times(times)
    query, key, start = tensors(0)
    change = tensors(1)[0]
    for step, time in enumerate(times):
        run.begin_forward("cond", step)
        call = AttentionCall(query, key, start + time * change, GRID)
        output = run.attention("layer", call)
        run.end_forward()
        dense = scaled_dot_product_attention(call.query, call.key, call.value)
        assert torch.allclose(output, dense, atol=1e-5) == (step != 1)  # which knows one refresh only


def test_held_bytes_count_passes_and_layers():
    run, _ = generate(ReuseConfig(theta=0.5, refresh=3), 6, passes=("cond", "uncond"))
    tensor = 2 * GRID.tokens * 8 * 4
    sides = [side for kept in run._plans.values() for side in (kept.plan.query, kept.plan.key)]
    plans = sum(2 * (4 * GRID.tokens + 4 * (GRID.tokens + 1) + 8) for _ in sides)  # of two heads: order, starts, counts
    plans += sum(2 * 2 * 4 * GRID.tokens + 2 * 4 * int(side.counts.sum()) for side in sides)  # and packed
    assert (
        len(sides) == 2 * 2 and run.held_bytes == 2 * 2 * 2 * tensor + plans
    )  # passes, layers, an error and its slope
    run, _ = generate(ReuseConfig(theta=0.5, refresh=3, extrapolate=False), 6, passes=("cond", "uncond"))
    assert run.held_bytes == 2 * 2 * tensor + plans


@pytest.mark.parametrize("granularity", ["token", "tile", "channel"])
@pytest.mark.parametrize("refresh", ["auto", None])
def test_the_window_meets_its_budget(granularity, refresh):
    config = ReuseConfig(granularity, budget=0.5, refresh=refresh, query_tile=(2, 2, 2))
    run, _ = generate(config, 10, drift=0.02, passes=("cond", "uncond"))
    saving = summarise_saving(run.records, run.steps, config.kind)
    window = [step.index for step in run.steps if step.in_window]
    assert saving["kind"] == ("theoretical" if granularity == "channel" else "realised")
    assert saving["reuse_steps"] == pytest.approx(0.5, abs=0.02)
    assert saving["reuse_steps"] == pytest.approx(sum(saving["per_step"][i] for i in window) / len(window))
    assert saving["all_steps"] == pytest.approx(sum(saving["per_step"]) / 10)
    assert len(saving["per_step"]) == 10
    dense = [step.index for step in run.steps if step.kind == "dense"]
    assert all(saving["per_step"][i] == 0 for i in dense)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [(0.5, 0.5), (0.4, 0.5 + 0.3 / 4), (-1.0, 63 / 64), (1.5, 0.0)],
)
def test_a_shortfall_is_made_up_for_within_the_ceiling(saved, expected):
    run = ReuseRun(ReuseConfig(budget=0.5, refresh=None, ramp=0), 10)  # steps 2 to 8 are the window
    for step in run.steps[:5]:
        saving = torch.tensor([saved if step.in_window else 0.0])
        run._records.add(step, "cond", "layer", None, saving, (0.0, 0.0, 0.0))
    run.begin_forward("cond", 5)
    assert run._target(run.steps[5]) == pytest.approx(expected)


@pytest.mark.parametrize("granularity", ["token", "tile", "channel"])
def test_one_threshold_serves_all_layers_of_a_step(granularity):
    run, _ = generate(ReuseConfig(granularity, budget=0.6, refresh=None), 8, drift=0.1, passes=("cond", "uncond"))
    thetas = {}
    for record in run.records:
        thetas.setdefault((record["step"], record["pass"]), set()).add(record["theta"])
    for (step, _), found in thetas.items():
        assert len(found) == 1
        assert (None in found) == (run.steps[step].kind == "dense")
    assert (thetas[3, "cond"] == thetas[3, "uncond"]) == (granularity != "channel")


@pytest.mark.parametrize(("granularity", "refresh"), [("token", None), ("tile", None), ("token", 3)])
def test_later_passes_carry_out_the_plans_of_the_first(granularity, refresh):
    config = ReuseConfig(granularity, theta={"token": 1.0, "tile": 0.3}[granularity], refresh=refresh, ramp=0)
    run, outputs = generate(config, 5, drift=0.05, passes=("cond", "uncond"))
    savings = {(r["step"], r["pass"], r["layer"]): r["saving"] for r in run.records}
    for step in (2, 3):
        for layer in range(2):
            assert savings[step, "cond", f"layer{layer}"] == savings[step, "uncond", f"layer{layer}"]
    if refresh is None:
        call, other = (AttentionCall(*tensors(seed, 0.05, 2), GRID) for seed in (1, 11))
        plan = config.measure(call).plan(call, config.theta)
        expected, _ = ripple_attention(other, config, plan=plan)
        torch.testing.assert_close(outputs[2, "uncond", 1][0], expected)
        own, _ = ripple_attention(other, config)
        assert granularity == "tile" or not torch.allclose(own, expected)
        assert run.held_bytes == 0


def test_a_single_pass_without_feedback_keeps_nothing():
    run, _ = generate(ReuseConfig(theta=1.0, refresh=None), 6)
    assert run.held_bytes == 0 and not run._plans


def test_records():
    run, _ = generate(ReuseConfig(theta=0.5, refresh=2, dense_last=1), 5)
    assert [r["kind"] for r in run.records[::2]] == [step.kind for step in run.steps]
    assert [(r["step"], r["pass"], r["layer"]) for r in run.records[:3]] == [
        (0, "cond", "layer0"),
        (0, "cond", "layer1"),
        (1, "cond", "layer0"),
    ]
    for record in run.records:
        assert len(record["saving"]) == 2
        assert record["plan_seconds"] >= 0 and record["attention_seconds"] > 0
    by_kind = {record["kind"]: record for record in run.records if record["layer"] == "layer0"}
    assert by_kind["dense"]["saving"] == [0, 0]
    assert by_kind["refresh"]["saving"] == pytest.approx([saving - 1 for saving in by_kind["reuse"]["saving"]])


@pytest.mark.parametrize("refresh", ["auto", None])
def test_the_first_pass_does_not_see_the_others(refresh):
    config = ReuseConfig(budget=0.6, refresh=refresh)
    _, alone = generate(config, 8, drift=0.1)
    _, together = generate(config, 8, drift=0.1, passes=("cond", "uncond"))
    for place, (output, _) in alone.items():
        assert torch.equal(output, together[place][0])


@pytest.mark.parametrize("refresh", ["auto", None])
def test_dense_steps_far_from_the_window_measure_nothing(refresh, monkeypatch):
    calls, measure = [], ReuseConfig.measure
    config = ReuseConfig(budget=0.6, dense_first=0.5, dense_last=2, refresh=refresh)

    def counted(config, call):
        calls.append(run._step.index)
        return measure(config, call)

    monkeypatch.setattr(ReuseConfig, "measure", counted)
    run = ReuseRun(config, 10)
    generate(config, 10, run=run)
    busy = [step.index for step in run.steps if step.kind != "dense"]
    refreshes = [step.index for step in run.steps if step.kind == "refresh"]
    assert sorted(set(calls)) == ([busy[0] - 1, *busy] if refresh is None else refreshes[:1])


def test_a_pass_that_starts_late_begins_with_a_refresh():
    """Its error was never measured, so its first reuse step does that, and the next one has it."""
    run = ReuseRun(ReuseConfig(theta=1.0, refresh=4, ramp=0), 8)
    outputs = []
    for step in (6, 7):
        run.begin_forward("late", step)
        outputs.append(run.attention("layer", AttentionCall(*tensors(0), GRID)))
        run.end_forward()
    assert [run.steps[step].kind for step in (6, 7)] == ["reuse", "reuse"]
    assert [record["kind"] for record in run.records] == ["refresh", "reuse"]
    dense = scaled_dot_product_attention(*tensors(0))
    assert torch.equal(outputs[0], dense)
    torch.testing.assert_close(outputs[1], dense)  # the same inputs: reused and error make up the dense output


def test_a_call_of_another_size_begins_with_a_refresh():
    run, _ = generate(ReuseConfig(theta=1.0, refresh=4, ramp=0, dense_last=0), 4)
    first = len(run.records)
    half = [x[:, :, :32] for x in tensors(0)]
    for step in (2, 3):
        run.begin_forward("cond", step)
        output = run.attention("layer0", AttentionCall(*half, TokenGrid(2, 4, 4)))
        run.end_forward()
    assert [record["kind"] for record in run.records[first:]] == ["refresh", "reuse"]
    torch.testing.assert_close(output, scaled_dot_product_attention(*half))


def test_a_refresh_that_a_cache_leaves_out_is_made_up_for():
    """As adaptive caches do, whose steps nobody knows beforehand; a layer that was asked is as it would be."""
    run = ReuseRun(ReuseConfig(theta=1.0, refresh=3, ramp=0, dense_first=0.1, dense_last=0), 10)
    assert [step.index for step in run.steps if step.kind == "refresh"] == [0, 3, 6, 9]
    for step in range(10):
        run.begin_forward("cond", step)
        run.attention("asked", AttentionCall(*tensors(0, 0.1, step), GRID))
        if step in (3, 4, 9):
            run.skipped("left out", 2)
        else:
            output = run.attention("left out", AttentionCall(*tensors(1, 0.1, step), GRID))
        if step == 5:
            torch.testing.assert_close(output, scaled_dot_product_attention(*tensors(1, 0.1, step)))
        run.end_forward()
    kinds = {name: "".join(r["kind"][2] for r in run.records if r["layer"] == name) for name in ("asked", "left out")}
    assert kinds == {"asked": "fuufuufuuf", "left out": "fuuccffuuc"}
