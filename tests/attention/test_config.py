import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import ConfigError

KINDS = {"dense": "d", "refresh": "R", "reuse": "."}


def pattern(config, steps):
    return "".join(KINDS[step.kind] for step in config.schedule(steps))


def test_defaults():
    config = ReuseConfig()
    assert (config.granularity, config.budget, config.theta, config.metric) == ("token", 0.75, None, "logit")
    assert ReuseConfig(theta=0.3).budget is None
    with pytest.raises(FrozenInstanceError):
        config.budget = 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token", ReuseConfig()),
        ("token:0.75:refresh=4", ReuseConfig(refresh=4)),
        ("token:extrapolate=no", ReuseConfig(extrapolate=False)),
        ("token:extrapolate=yes", ReuseConfig()),
        ("tile:0.5:refresh=none", ReuseConfig("tile", budget=0.5, refresh=None)),
        ("channel:theta=0.3", ReuseConfig("channel", theta=0.3)),
        ("token:0.7:axes=ty", ReuseConfig(budget=0.7, axes=("t", "y"))),
        ("channel:window=4:ramp=0.1", ReuseConfig("channel", window=4, ramp=0.1)),
        ("tile:query_tile=2x4x8:dense_last=2", ReuseConfig("tile", query_tile=(2, 4, 8), dense_last=2)),
        ("token:metric=rms:refresh=auto:ramp=auto", ReuseConfig(metric="rms")),
    ],
)
def test_parse(text, expected):
    assert ReuseConfig.parse(text) == expected


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (ReuseConfig(), "token-0.75"),
        (ReuseConfig("channel", theta=0.3, axes="ty"), "channel-theta=0.3-axes=ty"),
        (ReuseConfig("tile", budget=0.5, refresh=None, query_tile=(1, 2, 3)), "tile-0.5-refresh=none-query_tile=1x2x3"),
    ],
)
def test_label_names_what_differs_and_parses_back(config, label):
    assert config.label == label
    assert ReuseConfig.parse(label.replace("-", ":")) == config


@pytest.mark.parametrize("config", [ReuseConfig(), ReuseConfig("channel", theta=0.3, axes="tx", refresh=3, ramp=0.5)])
def test_dict_and_file_round_trips(config, tmp_path):
    assert ReuseConfig.from_dict(config.to_dict()) == config
    config.save(tmp_path / "config.json")
    loaded = ReuseConfig.load(tmp_path / "config.json")
    assert loaded == config
    assert hash(loaded) == hash(config)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ReuseConfig("pixel"), ["'pixel'", "channel, token, tile"]),
        (lambda: ReuseConfig(metric="max"), ["'max'", "rms, logit"]),
        (lambda: ReuseConfig(axes="tz"), ["'z'", "t, y, x"]),
        (lambda: ReuseConfig(axes="tt"), ["'t', 't'", "distinct"]),
        (lambda: ReuseConfig(axes=()), ["()", "t, y, x"]),
        (lambda: ReuseConfig(budget=0.5, theta=0.3), ["0.5", "0.3", "one of them"]),
        (lambda: ReuseConfig(budget=1.0), ["1.0", "from 0 up to"]),
        (lambda: ReuseConfig(budget=-0.1), ["-0.1", "from 0 up to"]),
        (lambda: ReuseConfig(theta=-1), ["-1", "0 (dense) or more"]),
        (lambda: ReuseConfig(budget=0.99), ["0.99", "ceiling 0.9844", "lower the budget"]),
        (lambda: ReuseConfig("tile", budget=0.9), ["0.9", "ceiling 0.8750"]),
        (lambda: ReuseConfig(budget=0.8, axes="t"), ["0.8", "ceiling 0.7500"]),
        (lambda: ReuseConfig("channel", window=1), ["window 1", "2 or more"]),
        (lambda: ReuseConfig(window=3), ["window 3", "channel", "leave it at 2"]),
        (lambda: ReuseConfig(refresh=0), ["refresh 0", "1 or more"]),
        (lambda: ReuseConfig(refresh="often"), ["'often'", "None or 'auto'"]),
        (lambda: ReuseConfig(extrapolate=1), ["extrapolate 1", "yes or no"]),
        (lambda: ReuseConfig.parse("token:extrapolate=maybe"), ["'maybe'", "extrapolate=no"]),
        (lambda: ReuseConfig(dense_first=1.5), ["1.5", "0 to 1"]),
        (lambda: ReuseConfig(dense_last=-1), ["-1", "number of steps"]),
        (lambda: ReuseConfig(ramp=2), ["2", "0 to 1"]),
        (lambda: ReuseConfig(theta_min=-0.1), ["-0.1", "0 to 1"]),
        (lambda: ReuseConfig(query_tile=(4, 0, 4)), ["(4, 0, 4)", "1 or more"]),
        (lambda: ReuseConfig("tile", query_tile=(4, 8.5, 8)), ["8.5", "1 or more"]),
        (lambda: ReuseConfig("channel", window=2.5), ["window 2.5", "2 or more"]),
        (lambda: ReuseConfig(refresh=True), ["refresh True", "1 or more"]),
        (lambda: ReuseConfig(dense_last=True), ["dense_last True", "0 or more"]),
        (lambda: ReuseConfig(budget=False), ["budget False", "no number"]),
        (lambda: ReuseConfig.from_dict({"speed": 1}), ["'speed'", "granularity, budget"]),
        (lambda: ReuseConfig.parse("fast:0.5"), ["'fast'", "channel, token, tile"]),
        (lambda: ReuseConfig.parse("token:speed=1"), ["'speed'", "budget, theta"]),
        (lambda: ReuseConfig.parse("token:half"), ["'half'", "0.75"]),
        (lambda: ReuseConfig.parse("token:budget=auto"), ["'auto'", "0.75"]),
        (lambda: ReuseConfig.parse("token:0.5:budget=0.6"), ["'budget'", "twice"]),
        (lambda: ReuseConfig(budget=0.9, refresh=2).schedule(20), ["0.9", "8 refreshes", "0.5138"]),
    ],
)
def test_errors_name_the_value_and_the_remedy_in_one_sentence(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    message = str(error.value)
    for word in words:
        assert word in message
    assert message.endswith(".")
    assert ". " not in message.removesuffix(".").replace("e.g. ", "")


@pytest.mark.parametrize(
    ("config", "steps", "expected"),
    [
        (ReuseConfig(), 20, "ddR....R...R....R..."),
        (ReuseConfig(budget=0.7), 20, "ddR...R...R..R...R.."),
        (ReuseConfig(budget=0.85), 20, "ddR........R........"),
        (ReuseConfig(dense_first=0.2, dense_last=1), 20, "dddR...R...R...R...d"),
        (ReuseConfig(), 8, "dR...R.."),
        (ReuseConfig(), 7, "R...R.."),
        (ReuseConfig(), 1, "d"),
        (ReuseConfig(), 2, "R."),
        (ReuseConfig(dense_last=1), 2, "dd"),
        (ReuseConfig(), 3, "R.."),
        (ReuseConfig(refresh=None), 20, "dddd...............d"),
        (ReuseConfig("channel"), 10, "dd.......d"),
        (ReuseConfig("channel", theta=0.3, refresh=3), 10, "dR..R..R.."),
        (ReuseConfig(theta=0.5, refresh=1), 6, "RRRRRR"),
        (ReuseConfig(dense_first=0, dense_last=0, refresh=None), 3, "d.."),
        (ReuseConfig(theta=0), 20, "d" * 20),
        (ReuseConfig(budget=0), 20, "d" * 20),
        (ReuseConfig(dense_first=1.0), 5, "ddddd"),
    ],
)
def test_schedule_kinds(config, steps, expected):
    assert pattern(config, steps) == expected


def test_the_refresh_before_the_window_is_outside_the_account():
    steps = ReuseConfig(refresh=4, dense_first=0.2, dense_last=1).schedule(20)
    assert [step.index for step in steps if step.in_window] == list(range(4, 19))
    assert steps[3].kind == "refresh" and not steps[3].in_window
    assert steps[3].saving_target == steps[4].saving_target
    assert steps[7].kind == "refresh" and steps[7].in_window
    assert math.isclose(steps[4].saving_target, (0.75 * 15 + 3) / 15)


def test_ramp_is_equation_4():
    steps = ReuseConfig("channel", theta=0.5).schedule(50)
    assert steps[9].kind == "dense" and steps[49].kind == "dense"
    for number in range(11, 50):  # steps counted from 1, as the paper does
        expected = 0.2 + (number - 11) * (0.5 - 0.2) / (21 - 11) if number <= 21 else 0.5
        assert math.isclose(steps[number - 1].theta, expected)


def test_an_automatic_ramp_is_shortened_where_the_budget_needs_it():
    full = [step.saving_target for step in ReuseConfig("channel").schedule(4)]
    assert full == [None, 0.75, 0.75, None]
    with pytest.raises(ConfigError, match="this ramp"):
        ReuseConfig("channel", ramp=0.25).schedule(4)


@given(
    granularity=st.sampled_from(["channel", "token", "tile"]),
    budget=st.floats(0.01, 0.95),
    steps=st.integers(1, 60),
    refresh=st.sampled_from(["auto", None, 2, 3, 5, 9]),
    ramp=st.sampled_from(["auto", 0.0, 0.2]),
    axes=st.sampled_from(["tyx", "ty", "x"]),
)
def test_targets_add_up_to_the_budget(granularity, budget, steps, refresh, ramp, axes):
    try:
        config = ReuseConfig(granularity, budget=budget, refresh=refresh, ramp=ramp, axes=axes)
        schedule = config.schedule(steps)
    except ConfigError as error:
        assert "lower" in str(error)
        return
    assert [step.index for step in schedule] == list(range(steps))
    assert schedule[0].kind == "dense" or not schedule[0].in_window
    window = [step for step in schedule if step.in_window]
    savings = [step.saving_target - (step.kind == "refresh") for step in window]
    assert math.isclose(sum(savings), budget * len(window), abs_tol=1e-9)
    assert all(0 <= step.saving_target <= config.ceiling + 1e-9 for step in window)


@given(budget=st.floats(0.05, 0.95), steps=st.integers(3, 60), granularity=st.sampled_from(["token", "tile"]))
def test_automatic_refresh_is_the_most_frequent_that_is_comfortable(budget, steps, granularity):
    try:
        schedule = ReuseConfig(granularity, budget=budget).schedule(steps)
    except ConfigError:
        return
    limit = {"token": 0.98 * 63 / 64, "tile": 0.915 * 7 / 8}[granularity]
    window = sum(step.in_window for step in schedule)
    refreshes = [step.index for step in schedule if step.kind == "refresh"]
    if not refreshes:
        return
    assert budget + (len(refreshes) - 1) / window <= limit or len(refreshes) == 1
    assert budget + len(refreshes) / window > limit or len(refreshes) == window
    parts = [end - start for start, end in pairwise([*refreshes, steps])]
    assert max(parts) - min(parts) <= 1 and parts[-1] == min(parts)


@given(
    budgets=st.tuples(st.floats(0.02, 0.9), st.floats(0.02, 0.9)).map(sorted),
    steps=st.integers(10, 28),
    granularity=st.sampled_from(["token", "tile"]),
)
def test_a_smaller_budget_never_goes_longer_without_a_refresh(budgets, steps, granularity):
    """Quality falls with the time since the last refresh; measured on Pond, see `_fit`."""
    longest, reused = [], []
    for budget in budgets:
        try:
            schedule = pattern(ReuseConfig(granularity, budget=budget), steps)
        except ConfigError:
            return
        longest.append(max(map(len, schedule.split("R"))) if "." in schedule else 0)
        reused.append(schedule.count("."))
    assert longest == sorted(longest) and reused == sorted(reused)


def test_highest_budget_named_is_feasible():
    with pytest.raises(ConfigError) as error:
        ReuseConfig(budget=0.9, refresh=3).schedule(30)
    highest = float(str(error.value).split("lower it to ")[1].split()[0])
    ReuseConfig(budget=highest - 1e-4, refresh=3).schedule(30)
    with pytest.raises(ConfigError):
        ReuseConfig(budget=highest + 1e-3, refresh=3).schedule(30)


@pytest.mark.parametrize("granularity", ["token", "tile"])
@pytest.mark.parametrize("budget", [0.001, 0.01, 0.1, 0.3, 0.5, 0.75])
def test_no_schedule_computes_more_than_dense_attention(granularity, budget):
    for count in range(1, 41):
        try:
            steps = ReuseConfig(granularity, budget=budget).schedule(count)
        except ConfigError:
            continue
        computed = sum(
            1 if step.kind == "dense" else (step.kind == "refresh") + 1 - step.saving_target for step in steps
        )
        assert computed <= count + 1e-6
