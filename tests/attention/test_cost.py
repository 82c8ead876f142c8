"""Speed in place of a budget. What calls take is told, not timed: these tests ask what follows from it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.attention.test_run import GRID, generate, tensors
from timeripple.attention import AttentionCall, ReuseRun, ripple_attention
from timeripple.attention import cost as costs
from timeripple.attention.config import ReuseConfig
from timeripple.attention.cost import Cost, cost_of
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import ConfigError, Step
from timeripple.attention.plans import token
from timeripple.clips.methods import parse_method
from timeripple.hooks.account import shortfall

CALL = AttentionCall(*tensors(0), GRID)
FAST = Cost(dense=100.0, fixed=2.0, products=95.0, planning=30.0, highest=1.0)
SLOW = Cost(dense=1.0, fixed=3.0, products=1.0, planning=2.0, highest=1.0)  # few tokens: bookkeeping is all


@pytest.fixture
def told(monkeypatch):
    """told(cost): what calls take from now on."""
    return lambda cost: monkeypatch.setattr(costs, "cost_of", lambda call, method: cost)


def test_a_run_takes_the_sum_of_its_steps():
    steps = [
        Step(0, "refresh", saving_target=0.8),
        Step(1, "reuse", saving_target=0.8),
        Step(2, "dense"),
        Step(3, "reuse", saving_target=0.4),
    ]
    reused = [2 + 0.2 * 95, 2 + 0.2 * 95, 2 + 0.6 * 95]
    assert FAST.of(steps, plans_once=True) == pytest.approx(200 + sum(reused) + 30)
    assert FAST.of(steps, plans_once=False) == pytest.approx(200 + sum(reused) + 90)


@pytest.mark.parametrize("speedup", [1.05, 1.5, 2.0, 2.5])
@pytest.mark.parametrize("steps", [8, 14, 30])
def test_the_smallest_budget_that_is_fast_enough_is_chosen(speedup, steps):
    chosen = ReuseConfig(speedup=speedup).at_cost(steps, FAST)

    def gain(hundredths):
        config = ReuseConfig(budget=hundredths / 100)
        return steps * 100 / FAST.of(config.schedule(steps), plans_once=True)

    enough = [hundredths for hundredths in range(1, 90) if gain(hundredths) >= speedup]
    assert chosen == ReuseConfig(budget=enough[0] / 100)


def test_where_no_budget_is_fast_enough_it_is_the_fastest():
    chosen = ReuseConfig(speedup=50.0).at_cost(14, FAST)
    others = []
    for hundredths in range(1, 99):
        try:
            others.append(FAST.of(ReuseConfig(budget=hundredths / 100).schedule(14), plans_once=True))
        except ConfigError:
            break
    assert FAST.of(chosen.schedule(14), plans_once=True) == min(others)


@pytest.mark.parametrize("asked", ["token:speedup=1.5", "token:speedup=3:refresh=2", "tile:speedup=1.2:refresh=none"])
def test_where_reuse_is_slower_attention_stays_dense(told, asked):
    told(SLOW)
    run, outputs = generate(None, 6, drift=0.1, run=ReuseConfig.parse(asked).start(6))
    assert all(torch.equal(output, dense) for output, dense in outputs.values())
    assert run.chosen == {"budget": 0.0, "saving": 0.0, "speedup": 1.0} and {
        record["kind"] for record in run.records
    } == {"dense"}


def test_one_times_as_fast_is_dense(told):
    told(FAST)
    run, _ = generate(None, 6, run=ReuseConfig(speedup=1.0).start(6))
    assert run.chosen["budget"] == 0


def test_the_run_is_that_of_the_budget_that_was_chosen(told):
    told(FAST)
    passes = ("cond", "uncond")
    run, outputs = generate(None, 8, 0.2, passes, run=ReuseConfig(speedup=1.6).start(8))
    budget = run.chosen["budget"]
    plain, expected = generate(ReuseConfig(budget=budget), 8, 0.2, passes)
    assert 0 < budget < 1 and run.steps == plain.steps and run.chosen["speedup"] >= 1.6
    assert all(torch.equal(outputs[key][0], expected[key][0]) for key in outputs)
    assert [r["saving"] for r in run.records] == [r["saving"] for r in plain.records]


def test_a_line_goes_through_what_is_measured(monkeypatch):
    curve = token.measure(CALL, ReuseConfig())
    work = {}

    def seconds(call, function):
        """Told by what the function does: 2 s and 40 s for all products, 17 s to plan, 50 s dense."""
        output = function()
        if isinstance(output, tuple):
            work["saving"] = float(output[1].saving.mean())
            return 2 + 40 * (1 - work["saving"])
        return 50.0 if isinstance(output, torch.Tensor) else 17.0

    monkeypatch.setattr(costs, "_seconds", seconds)
    measured = costs._measured(CALL, ReuseConfig(speedup=2.0))
    assert measured == Cost(pytest.approx(50), pytest.approx(2), pytest.approx(40), pytest.approx(17), 63 / 64)
    assert float(curve.saving(math.inf).mean()) > work["saving"] > 0.5


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_values_that_merge_all_at_once_do_not_make_products_free(monkeypatch, value):
    """One point is no line: what is kept for this shape is also for other values."""
    monkeypatch.setattr(costs, "_seconds", lambda call, work: 10.0 if isinstance(work(), tuple) else 50.0)
    same = AttentionCall(*(torch.full_like(CALL.query, value) for _ in range(3)), GRID)
    cost = costs._measured(same, ReuseConfig(speedup=2.0))
    assert cost.products == cost.dense == 50 and cost.highest == 63 / 64
    assert 0 <= cost.fixed < 10


@pytest.mark.parametrize(
    ("grid", "text", "highest"), [((1, 1, 7), 0, 1 - (4 / 7) ** 2), ((4, 4, 4), 64, 1 - (72 / 128) ** 2)]
)
def test_what_text_and_small_grids_leave_is_all_that_is_counted_on(told, grid, text, highest):
    grid = TokenGrid(*grid, text_after=text)
    call = AttentionCall(*torch.randn(3, 1, 2, grid.tokens, 8, generator=torch.Generator().manual_seed(0)), grid)
    cost = replace(FAST, highest=costs._measured(call, ReuseConfig(speedup=2.0)).highest)
    assert cost.highest == pytest.approx(highest)
    told(cost)
    run = ReuseConfig(speedup=2.5).start(14)
    run.begin_forward("cond", 0)
    run.attention("layer", call)
    saved = [min(step.saving_target, highest) for step in run.steps if step.in_window]
    refreshes = sum(step.in_window and step.kind == "refresh" for step in run.steps)
    assert run.chosen["saving"] == pytest.approx((sum(saved) - refreshes) / 11)
    assert (
        run.chosen["speedup"] == pytest.approx(1400 / cost.of(run.steps, plans_once=True))
        and run.chosen["speedup"] < 2.5
    )


def test_what_was_measured_is_kept_by_machine_and_shape(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []
    monkeypatch.setattr(
        costs, "_measured", lambda call, method: measured.append(call) or replace(FAST, fixed=len(measured))
    )
    config = ReuseConfig(speedup=1.5)
    assert cost_of(CALL, config) == cost_of(CALL, config) == replace(FAST, fixed=1)
    assert cost_of(CALL.to(torch.float64), config) == replace(FAST, fixed=2)
    assert cost_of(CALL, ReuseConfig("tile", speedup=1.5)) == replace(FAST, fixed=3)
    assert cost_of(CALL, config) == replace(FAST, fixed=1) and len(measured) == 3
    (file,) = (tmp_path / "timeripple").iterdir()
    names = json.loads(file.read_text())
    assert len(names) == 3 and all(torch.__version__ in name for name in names)


@pytest.mark.parametrize("values", [[1, 2], ["fast", 1, 2, 3, 4], {"dense": 1}, None, 5])
def test_an_entry_that_is_not_ours_is_measured_again(monkeypatch, tmp_path, values):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "_measured", lambda call, method: FAST)
    config = ReuseConfig(speedup=1.5)
    costs._write(costs._file(), {costs._name(CALL, config): values, "another": [1, 2, 3, 4, 5]})
    assert cost_of(CALL, config) == FAST
    assert [*costs._read(costs._file()).values()] == [[100, 2, 95, 30, 1], [1, 2, 3, 4, 5]]


def test_without_a_home_it_is_kept_among_temporary_files(monkeypatch, tmp_path):
    """As in a container that runs under any number of a user."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(costs.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(costs.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    monkeypatch.setattr(costs, "_measured", lambda call, method: FAST)
    assert cost_of(CALL, ReuseConfig(speedup=1.5)) == FAST and (tmp_path / "timeripple/cost.json").exists()


def test_what_cannot_be_kept_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "_measured", lambda call, method: FAST)
    (tmp_path / "timeripple/cost.json").mkdir(parents=True)
    assert cost_of(CALL, ReuseConfig(speedup=1.5)) == FAST
    assert [each.name for each in (tmp_path / "timeripple").iterdir()] == ["cost.json"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"x": 1}', "\xff", None])
def test_a_file_that_cannot_be_read_is_measured_again(monkeypatch, tmp_path, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(costs, "_measured", lambda call, method: FAST)
    if content is None:
        (tmp_path / "cache").write_text("no folder")
    else:
        (tmp_path / "cache/timeripple").mkdir(parents=True)
        (tmp_path / "cache/timeripple/cost.json").write_text(content, encoding="latin-1")
    assert cost_of(CALL, ReuseConfig(speedup=1.5)) == cost_of(CALL, ReuseConfig(speedup=1.5)) == FAST


def test_measuring_gives_numbers_and_touches_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    query, key, value = tensors(3)
    before = query.clone(), key.clone(), value.clone()
    cost = cost_of(AttentionCall(query, key, value, GRID), ReuseConfig(speedup=2.0))
    assert cost.dense > 0 and cost.planning > 0 and cost.fixed >= 0 and cost.products >= 0
    assert all(map(torch.equal, (query, key, value), before))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("token:0.5:speedup=2", "budget 0.5 and speedup 2.0 exclude each other"),
        ("token:theta=1:speedup=2", "theta 1.0 and speedup 2.0 exclude each other"),
        ("token:speedup=0.5", "speedup 0.5 is not how many times as fast; give a number from 1 up"),
        ("token:speedup=nan", "speedup nan is not"),
        ("token:speedup=inf", "speedup inf is not"),
        ("token:speedup=fast", "'fast' in 'token:speedup=fast' is not a value of speedup; e.g. speedup=1.5"),
        ("channel:speedup=2", "channel reuse saves no time and so has no speedup"),
        ("skip:speedup=2", "'speedup'"),
        ("svg2:speedup=2", "'speedup'"),
    ],
)
def test_a_speedup_that_cannot_be_is_one_sentence(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_method(text)


def test_it_is_text_and_back():
    config = ReuseConfig(speedup=1.5, refresh=2)
    assert config.text == "token:speedup=1.5:refresh=2" and config.label == "token-speedup=1.5-refresh=2"
    assert ReuseConfig.parse(config.text) == config == ReuseConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    with pytest.raises(ValueError, match="chosen for over a whole run; give this call a theta or a saving"):
        ripple_attention(CALL, config)
    output, _ = ripple_attention(CALL, config, saving=0.0)
    assert torch.equal(output, scaled_dot_product_attention(CALL.query, CALL.key, CALL.value))


def test_a_speedup_out_of_reach_is_said():
    numbers = {"saving": None, "chosen": {"budget": 0.8, "saving": 0.8, "speedup": 1.31}}
    config = ReuseConfig(speedup=2.0)
    assert shortfall(config, numbers) == "attention was to be 2 times as fast and can be 1.31 times here at this size"
    numbers["chosen"] = {"budget": 0.0, "saving": 0.0, "speedup": 1.0}
    assert shortfall(config, numbers) == "attention stayed dense, as reuse is not faster here at this size"
    numbers["chosen"] = {"budget": 0.6, "saving": 0.6, "speedup": 2.02}
    assert shortfall(config, numbers) is None and isinstance(config.start(8), ReuseRun)
