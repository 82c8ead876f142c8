import math

import numpy as np
import pytest
import torch

from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.method import ConfigError
from timeripple.attention.similarity import reuse_mask, snap
from timeripple.clips.generate import Request, generate
from timeripple.inspection.laboratory import (
    Specimen,
    head_trials,
    pairing_method,
    parse_reuse,
    relative_change,
    residual_drift,
)
from timeripple.inspection.probe import capture

GRID = TokenGrid(4, 6, 4)
CONFIGS = [ReuseConfig(granularity, budget=0.5, query_tile=(2, 2, 2)) for granularity in ("channel", "token", "tile")]
REQUEST = Request("a red ball", steps=3, num_frames=13, height=32, width=32)


def random(heads=2, seed=0, grid=GRID):
    return torch.randn(3, heads, grid.tokens, 8, generator=torch.Generator().manual_seed(seed))


def constant_windows(heads=2, seed=0):
    """q, k and v that are the same in every 2 x 2 x 2 window."""
    coarse = torch.randn(3, heads, 2, 3, 2, 8, generator=torch.Generator().manual_seed(seed))
    for dim in (2, 3, 4):
        coarse = coarse.repeat_interleave(2, dim)
    return coarse.flatten(2, 4)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.granularity)
def test_nothing_is_lost_where_neighbours_are_alike(config):
    trial = Specimen(*constant_windows(), GRID, config).try_reuse(theta=1e-3)
    ceiling = {"channel": 1 - 1 / 64, "token": 1 - 1 / 64, "tile": 1 - 1 / 8}[config.granularity]
    assert trial.saving.tolist() == pytest.approx([ceiling] * 2) and trial.error.max() < 1e-4


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.granularity)
def test_theta_0_is_dense(config):
    specimen = Specimen(*random(), GRID, config)
    trial = specimen.try_reuse(theta=0)
    assert trial.saving.tolist() == [0, 0] and trial.error.tolist() == [0, 0]
    assert specimen.reused(0).abs().max() == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.granularity)
def test_the_error_is_that_of_the_output(config):
    q, k, v = random()
    specimen = Specimen(q, k, v, GRID, config)
    trial = specimen.try_reuse()
    assert trial.saving.mean().item() == pytest.approx(0.5, abs=0.03)
    assert trial.kind == ("theoretical" if config.granularity == "channel" else "realised")
    if config.granularity == "channel":
        q, k = (snap(x, GRID, trial.theta, AXES, 2)[0] for x in (q, k))
        given = specimen.call.query, specimen.call.key
        outputs = [((a @ b.mT / math.sqrt(8)).softmax(-1) @ v) for a, b in ((q, k), given)]
        expected = [(outputs[0][h] - outputs[1][0, h]).norm() / outputs[1][0, h].norm() for h in range(2)]
        assert trial.error.tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-4)


def test_reused_shares_are_those_of_the_mask_and_of_the_saving():
    q, k, v = random()
    channel = Specimen(q, k, v, GRID, CONFIGS[0]).reused(0.6)
    for shares, x in zip(channel, (q, k), strict=True):
        assert torch.allclose(shares.flatten(1), reuse_mask(x, GRID, 0.6, AXES, 2).float().mean(-1))
    token = Specimen(q, k, v, GRID, CONFIGS[1])
    trial = token.try_reuse()
    rows = 1 - token.reused(trial.theta).flatten(2).mean(-1)
    assert (1 - rows[0] * rows[1]).tolist() == pytest.approx(trial.saving.tolist(), abs=1e-5)


def test_alternatives_save_as_much():
    found = Specimen(*random(), GRID, CONFIGS[1]).alternatives(0.5)
    assert [trial.name for trial in found] == ["reuse", "skip tokens", "skip windows", "zero"]
    for trial in found:
        assert trial.saving.mean().item() == pytest.approx(0.5, abs=0.05) and trial.error.min() > 0


def test_skipping_tokens_that_are_alike_loses_nothing_where_all_windows_are_as_large():
    """One key of eight equal ones stays everywhere: the softmax loses a factor of eight above and below."""
    found = {trial.name: trial for trial in Specimen(*constant_windows(), GRID, CONFIGS[1]).alternatives(7 / 8)}
    skipped = found["skip tokens"]
    assert skipped.saving.tolist() == [7 / 8] * 2 and skipped.error.max() < 1e-4
    assert found["zero"].error.min() > 0.01


def test_what_cannot_save_as_much_is_absent():
    """Skipping keeps at least one key of eight: at 0.9, tokens are out of reach; windows, eleven of twelve, are not."""
    found = Specimen(*random(), GRID, CONFIGS[1]).alternatives(0.9)
    assert [trial.name for trial in found] == ["reuse", "skip windows", "zero"]


def test_trials_rise_to_the_ceiling():
    trials = Specimen(*random(heads=1), GRID, CONFIGS[1]).trials
    savings = [trial.saving.item() for trial in trials]
    assert savings == sorted(savings) and savings[-1] == pytest.approx(1 - 1 / 64)
    assert trials[0].error < trials[-1].error


def test_zeroing_the_smallest_entries():
    """With all but the smallest of each equal, half of the entries saved on each side leaves a quarter."""
    specimen = Specimen(*random(heads=1), GRID, ReuseConfig("channel", budget=0.5))
    zero = specimen.alternatives(0.5)[-1]
    q, k, v = (x[0].double() for x in (specimen.query, specimen.key, specimen.value))
    small = [x.abs() < zero.theta for x in (q, k)]
    kept = [1 - mask.double().mean(0) for mask in small]
    assert zero.saving.item() == pytest.approx(1 - (kept[0] * kept[1]).mean().item(), abs=1e-6)
    a, b = (x.masked_fill(mask, 0) for x, mask in zip((q, k), small, strict=True))
    dense, output = ((x @ y.T / math.sqrt(8)).softmax(-1) @ v for x, y in ((q, k), (a, b)))
    assert zero.error.item() == pytest.approx(((output - dense).norm() / dense.norm()).item(), rel=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.granularity)
def test_an_error_drifts_with_the_tensors(config):
    still = residual_drift([random(), random()], GRID, config)
    assert still.abs().max() < 1e-6
    moved = residual_drift([random(), 0.99 * random() + 0.01 * random(seed=1), random(seed=2)], GRID, config)
    assert (moved[1] > 0).all() and (moved[1] < moved[2]).all()


def test_relative_change():
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert relative_change(2 * x, x).tolist() == [1, 0]


def test_report(tiny_pipeline):
    rows = head_trials(capture(tiny_pipeline, REQUEST, [0, 2]), ReuseConfig(budget=0.5))
    assert [(row["step"], row["layer"][7], row["head"]) for row in rows] == [
        (step, layer, head) for step in (0, 2) for layer in "01" for head in (0, 1)
    ]
    assert all(row["drift"] == 0 for row in rows[:4]) and all(row["drift"] > 0 for row in rows[4:])
    assert {name for row in rows for name, *_ in row["alternatives"]} == {"skip tokens", "skip windows", "zero"}
    for row in rows:  # as much as the head saves; a window of the eight that there are is an eighth more
        assert all(-0.01 < saving - row["saving"] < 1 / 8 for _, _, saving, _ in row["alternatives"])


def test_pairings_touch_their_channels_only_and_leave_nothing_behind(tiny_pipeline):
    block = tiny_pipeline.transformer.blocks[0].attn1
    dense = generate(tiny_pipeline, REQUEST, pairing_method(tiny_pipeline.transformer, "t", "x", theta=0))
    wrong = generate(tiny_pipeline, REQUEST, pairing_method(tiny_pipeline.transformer, "t", "x"))
    assert not np.array_equal(dense.frames, wrong.frames) and not hasattr(block, "_diffusers_hook")
    rope = tiny_pipeline.transformer.rope
    share = rope.t_dim / (rope.t_dim + rope.h_dim + rope.w_dim)
    assert wrong.saving["kind"] == "theoretical"
    assert wrong.saving["per_step"][1:] == pytest.approx([share * 0.75] * 2)  # every second entry, on both sides


def test_groups_that_do_not_exist(tiny_pipeline):
    with pytest.raises(ConfigError, match="channel group is 'z'; choose from t, y, x"):
        pairing_method(tiny_pipeline.transformer, "z", "t")
    with pytest.raises(ConfigError, match="axes"):
        pairing_method(tiny_pipeline.transformer, "t", "z")


@pytest.mark.parametrize("text", ["token:0.5+taylorseer:3", "token:0.7:steps=3", "token:0.7:solver=euler"])
def test_what_means_nothing_to_a_single_call_is_refused(text):
    with pytest.raises(ConfigError, match="leave steps, solver and step cache out"):
        parse_reuse(text)
