from types import SimpleNamespace

import pytest

from timeripple.attention.config import ReuseConfig
from timeripple.bench import calibrate as module
from timeripple.bench.calibrate import BUDGETS, DENSE_FIRST, calibrate
from timeripple.clips.generate import Request

REQUESTS = [Request("a red ball", num_frames=2, height=32, width=32)]


@pytest.fixture
def known_front(monkeypatch):
    """PSNR falls by 4 dB per 0.1 of budget and rises by 1 dB per 0.1 of dense start."""
    trials = []

    def generate(pipeline, request, method):
        trials.append(method.config)
        saving = method.config and {"all_steps": method.config.budget * (1 - method.config.dense_first)}
        return SimpleNamespace(frames=method.config, saving=saving)

    monkeypatch.setattr(module, "generate", generate)
    monkeypatch.setattr(
        module, "measure", lambda config, _: {"psnr": 60 - 40 * config.budget + 10 * config.dense_first}
    )
    return trials


def test_the_most_saving_that_keeps_a_psnr(tiny_pipeline, known_front):
    best = calibrate(tiny_pipeline, REQUESTS, psnr=35)
    fits = [
        (budget * (1 - dense_first), budget, dense_first)
        for budget in BUDGETS
        for dense_first in DENSE_FIRST
        if 60 - 40 * budget + 10 * dense_first >= 35
    ]
    _, budget, dense_first = max(fits)
    assert best.config == ReuseConfig(budget=budget, dense_first=dense_first)
    assert best.psnr >= 35 and len(known_front) <= 1 + len(DENSE_FIRST) * 5  # bisection, not a sweep


def test_the_best_quality_at_a_saving(tiny_pipeline, known_front):
    best = calibrate(tiny_pipeline, REQUESTS, saving=0.5)
    fits = [
        (60 - 40 * budget + 10 * dense_first, budget)
        for budget in BUDGETS
        for dense_first in DENSE_FIRST
        if budget * (1 - dense_first) >= 0.5
    ]
    assert best.psnr == pytest.approx(max(fits)[0]) and best.saving >= 0.5


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, "Give one target"),
        ({"psnr": 33, "saving": 0.5}, "Give one target"),
        ({"saving": 1.5}, "saving is 1.5; give a share"),
        ({"psnr": 99}, r"No settings keep 99 dB; the best found keep 50.0 dB"),
        ({"saving": 0.99}, "No settings save 0.99"),
    ],
)
def test_targets_that_cannot_be_reached_are_one_sentence(tiny_pipeline, known_front, targets, message):
    with pytest.raises(ValueError, match=message):
        calibrate(tiny_pipeline, REQUESTS, **targets)
