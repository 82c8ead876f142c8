"""Who is ahead: curves and intervals against cases that can be worked out by hand."""

import numpy as np
import pytest

from timeripple.bench.front import LEVELS, Point, ahead, interval, seconds_at, t_interval

ONE = np.ones((1, 1))


def point(family, seconds, psnr, ours=False):
    return Point(f"{family}:{seconds}", family, ours, np.atleast_1d(float(seconds)), np.atleast_1d(float(psnr)))


def test_seconds_between_two_points_lie_on_a_line_in_log_seconds():
    curve = [point("dense", 2, 30), point("dense", 8, 40)]
    assert seconds_at(curve, 35, ONE)[0] == pytest.approx(4)  # half of the way from 2 to 8 in log seconds
    assert seconds_at(curve, 30, ONE)[0] == pytest.approx(2) and seconds_at(curve, 25, ONE)[0] == 2
    assert np.isinf(seconds_at(curve, 41, ONE)[0])  # nothing is extrapolated


def test_a_point_that_is_better_and_cheaper_counts_for_less_quality():
    curve = [point("dense", 2, 30), point("dense", 8, 40), point("dense", 3, 38)]
    assert seconds_at(curve, 35, ONE)[0] == pytest.approx(2 ** (3 / 8) * 3 ** (5 / 8))
    assert seconds_at([point("a", 9, 30), point("a", 4, 38)], 30, ONE)[0] == 4


def test_ahead_is_the_ratio_to_the_best_of_the_others():
    points = [
        point("dense", 2, 30), point("dense", 8, 40), point("dense:solver=euler", 3, 30),
        point("dense:solver=euler", 20, 40), point("token:0.5", 1, 30, ours=True), point("token:0.5", 4, 40, ours=True),
        point("token:0.9", 0.5, 25, ours=True), point("forecast", 1.5, 33),
    ]  # fmt: skip
    rows = {row["psnr"]: row for row in ahead(points, (30, 34, 40, 41))}
    assert list(rows) == [30, 34, 40]  # nobody of ours keeps 41 dB
    assert rows[30]["ours"] == "token:0.5" and rows[30]["best_other"] == "forecast"
    assert rows[30]["ratio"] == pytest.approx(1.5)
    assert rows[34]["best_other"] == "dense" and rows[34]["ratio"] == pytest.approx(2)  # both curves rise alike
    assert rows[40]["ratio"] == pytest.approx(2) and rows[40]["interval"] == pytest.approx([2, 2])


def test_intervals_are_paired_by_prompt():
    """Prompts that differ by 10 dB, and a method that is always 1 dB ahead: the lead is certain, the level is not."""
    rng = np.random.default_rng(1)
    prompts = rng.normal(36, 5, 12)
    points = [
        Point(
            f"{name}{steps}", name, name == "ours", np.full(12, float(steps)), prompts + 6 * np.log2(steps / 10) + lead
        )
        for name, lead in (("ours", 1.0), ("dense", 0.0))
        for steps in (5, 10, 20, 40)
    ]
    (row,) = ahead(points, (36,))
    low, high = row["interval"]
    assert row["ratio"] == pytest.approx(2 ** (1 / 6), rel=1e-3) and low == pytest.approx(high, rel=1e-3)
    low, high = interval(prompts)
    error = prompts.std() / np.sqrt(12)
    assert low == pytest.approx(prompts.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(prompts.mean() + 1.96 * error, abs=0.3 * error)


def test_nothing_is_ahead_where_one_side_is_missing():
    assert ahead([point("dense", 2, 30)]) == [] and LEVELS[0] == 30 and LEVELS[-1] == 42


@pytest.mark.parametrize("prompts", [3, 4, 8])
def test_the_interval_that_is_promised_holds_the_mean_of_other_prompts(prompts):
    rng = np.random.default_rng(0)
    drawn, others = rng.normal(36, 3, (2000, prompts)), rng.normal(36, 3, (2000, 16)).mean(1)
    bounds = np.array([t_interval(values, 16) for values in drawn])
    held = (bounds[:, 0] <= others) & (others <= bounds[:, 1])
    assert held.mean() == pytest.approx(0.95, abs=0.015)
    if prompts == 4:  # why it is not the bootstrap's
        narrow = np.array([interval(values) for values in drawn[:300]])
        assert ((narrow[:, 0] <= others[:300]) & (others[:300] <= narrow[:, 1])).mean() < 0.85


def test_a_single_prompt_promises_nothing():
    assert t_interval([36.0], 16) is None
