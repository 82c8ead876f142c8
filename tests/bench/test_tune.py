"""The search against an exhaustive one, in a world where seconds and dB of everything are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import timeripple
from timeripple.attention.method import ConfigError
from timeripple.bench import tune as module
from timeripple.bench import work
from timeripple.bench.search import SHARED, Search, Target, fits
from timeripple.bench.tune import FAMILIES, tune
from timeripple.clips.generate import BrokenClip, Request, generate
from timeripple.clips.methods import load_method, parse_method
from timeripple.clips.solvers import solver_name

REQUESTS = [Request(f"a {colour} ball", seed=i, num_frames=5, height=32, width=32)
            for i, colour in enumerate(("red", "blue", "green", "pink"))]  # fmt: skip
SAVED = {"token:0.5": 0.55, "token:0.3": 0.7, "forecast:0.7": 0.75, "easycache:0.1": 0.6}
LOST = {"token:0.5": 1.5, "token:0.3": 0.5, "forecast:0.7": 5.0, "easycache:0.1": 12.0}


def level_of(family, steps, lost=LOST):
    """Mean dB over the prompts, some 6 a doubling of the steps, fewer of many, less what a family loses."""
    doublings = np.log2(steps / 10)
    own = np.mean([2 * np.sin(3 * i) for i in range(4)])
    return 34 + 6 * doublings - 0.4 * doublings**2 - lost.get(family, 0.0) + own


def live_in(patch):
    """A world in which a dense step takes a second, others what their family leaves of it; dB also differ by prompt.
    What is asked there, and what it is made of."""
    asked, saved, lost = [], dict(SAVED), dict(LOST)

    def run(self, job):
        asked.append(job)
        family, steps = work.family(job.method), parse_method(job.method).steps
        own = 2 * np.sin(3 * job.request.seed) - np.mean([2 * np.sin(3 * i) for i in range(4)])
        return {
            "step_kinds": ["reuse 1.0"] * steps,
            "step_seconds": [saved.get(family, 1.0)] * steps,
            "rest_seconds": 0.0,
            "psnr_converged": level_of(family, steps, lost) + own,
            "held_bytes": 0,
        }

    patch.setattr(module.Worker, "run", run)
    patch.setattr(module.Reference, "run", lambda self, job: asked.append(job) or {"frames": None})
    patch.setattr(module, "generate_once", lambda *_: None)
    return asked, saved, lost


@pytest.fixture
def world(monkeypatch):
    return live_in(monkeypatch)


def exhaustive(saved, keeps, lost=LOST):
    """Seconds, dB and family of everything that `keeps`."""
    found = []
    for family in ("dense", *SAVED):
        for steps in range(2, module.MOST_STEPS + 1):
            seconds, level = steps * saved.get(family, 1.0), level_of(family, steps, lost)
            if keeps(seconds, level) and fits(f"{family}:steps={steps}"):
                found.append((seconds, level, family))
    return found


def test_the_fastest_that_keeps_a_psnr(tiny_pipeline, world):
    asked, saved, _ = world
    counts = []
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=36), tuple(SAVED), on_run=lambda *count: counts.append(count))
    seconds, _, family = min(exhaustive(saved, lambda seconds, level: level >= 36))
    assert work.family(found["method"]) == family == "token:0.5"
    assert found["psnr"] >= 36 and found["seconds"] == pytest.approx(seconds)
    low, high = found["psnr_interval"]
    assert low < found["psnr"] < high and found["target"] == {"psnr": 36}
    assert len(asked) == len(set(asked)) < 60
    assert [done for done, _ in counts] == [*range(1, len(asked) + 1)] and all(done <= total for done, total in counts)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("target", [Target(speedup=2), Target(seconds=10)])
def test_the_best_within_a_time(tiny_pipeline, world, target):
    _, saved, _ = world
    found = tune(tiny_pipeline, REQUESTS, target, tuple(SAVED))
    best = max(exhaustive(saved, lambda seconds, level: seconds <= 10), key=lambda one: one[1])
    assert found["seconds"] <= 10 and found["psnr"] == pytest.approx(best[1])
    assert work.family(found["method"]) == best[2]


def test_where_fewer_steps_win_it_says_so(tiny_pipeline, world):
    _, saved, _ = world
    saved.update(dict.fromkeys(SAVED, 1.0))
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=36), tuple(SAVED))
    assert work.family(found["method"]) == "dense"
    assert found["seconds"] == pytest.approx(min(exhaustive(saved, lambda seconds, level: level >= 36))[0])


def test_where_a_peer_wins_it_returns_that(tiny_pipeline, world):
    _, saved, _ = world
    saved["forecast:0.7"] = 0.1
    assert work.family(tune(tiny_pipeline, REQUESTS, Target(psnr=34), tuple(SAVED))["method"]) == "forecast:0.7"


@settings(max_examples=25, deadline=None)
@given(
    costs=st.lists(st.floats(0.2, 1.3), min_size=4, max_size=4),
    losses=st.lists(st.floats(0, 14), min_size=4, max_size=4),
    target=st.floats(30, 42),
)
def test_never_slower_than_dense_with_fewer_steps_at_the_same_quality(tiny_pipeline, costs, losses, target):
    saved, lost = (dict(zip(SAVED, values, strict=True)) for values in (costs, losses))
    with pytest.MonkeyPatch.context() as patch:
        _, own_saved, own_lost = live_in(patch)
        own_saved.update(saved)
        own_lost.update(lost)
        by_psnr = tune(tiny_pipeline, REQUESTS, Target(psnr=target), tuple(SAVED))
        by_time = tune(tiny_pipeline, REQUESTS, Target(seconds=target / 3), tuple(SAVED))
    everything = exhaustive(saved, lambda seconds, level: level >= target, lost)
    assert by_psnr["psnr"] >= target
    assert by_psnr["seconds"] <= min(seconds for seconds, _, family in everything if family == "dense") + 1e-9
    dense = [level for s, level, family in exhaustive(saved, lambda s, _: s <= target / 3, lost) if family == "dense"]
    assert by_time["seconds"] <= target / 3 and by_time["psnr"] >= max(dense) - 1e-9


@pytest.fixture(scope="module")
def recorded():
    """By family: log steps, and of every prompt dB and dense steps a step (attention four fifths of one)."""
    path = Path(__file__).parents[2] / "assets/benchmarks/gpu/h200-work.json"
    known = {}
    for run in json.loads(path.read_text())["runs"]:
        name, steps = work.family(run["method"]), parse_method(run["method"]).steps
        if run["tokens"] == 5184 and name in ("dense", *FAMILIES):
            cost = 0.8 * run["attention_steps"] + 0.2 * run["rest_steps"]
            known.setdefault(name, {}).setdefault(steps, {})[run["seed"]] = run["psnr_converged"], cost / steps
    return {
        name: (np.log(sorted(runs)), np.array([[runs[steps][seed] for seed in range(8)] for steps in sorted(runs)]))
        for name, runs in known.items()
        if len(runs) > 1 and all(len(own) == 8 for own in runs.values())
    }


@pytest.mark.parametrize("seeds", [(0, 1, 2, 3), (4, 5, 6, 7), (0, 2, 4, 6), (3, 0, 1, 4)])
def test_it_comes_near_an_exhaustive_search_of_recorded_clips(tiny_pipeline, world, monkeypatch, recorded, seeds):
    def of(name, steps, seed):  # dB rise by 10 an e-fold of the steps below those recorded, by 4 above
        logs, runs = recorded[name]
        low, high = max(0.0, logs[0] - np.log(steps)), max(0.0, np.log(steps) - logs[-1])
        level, share = (np.interp(np.log(steps), logs, runs[:, seed, i]) for i in (0, 1))
        return level - 10 * low + 4 * high, steps * share

    def run(self, job):
        steps = parse_method(job.method).steps
        level, cost = of(work.family(job.method), steps, job.request.seed)
        asked.append(job)
        return {
            "step_kinds": [f"{steps} {job.request.seed}"] * steps,
            "step_seconds": [cost / steps] * steps,
            "rest_seconds": 0.0,
            "psnr_converged": level,
            "held_bytes": 0,
        }

    def means(name, steps):
        return np.mean([of(name, steps, seed) for seed in seeds], 0)

    asked = world[0]
    monkeypatch.setattr(module.Worker, "run", run)
    monkeypatch.setattr(module, "SOLVERS", ())
    requests = [replace(REQUESTS[0], seed=seed) for seed in seeds]
    names = [name for name in recorded if name != "dense"]
    assert len(names) > 10
    over = []
    for target in means("dense", 14)[0] + np.array([-3.0, 0.0, 2.0]):
        asked.clear()
        found = tune(tiny_pipeline, requests, Target(psnr=target), names)
        level, cost = means(work.family(found["method"]), found["steps"])
        assert found["psnr"] == pytest.approx(level) and level >= target and found["seconds"] == pytest.approx(cost)
        assert len(asked) < 3 * 4 * len(names)  # a fraction of everything
        every = {(name, steps): means(name, steps) for name in recorded for steps in range(2, 46)}
        kept = {
            name: cost
            for name, (level, cost) in every.items()
            if level >= target and fits(f"{name[0]}:steps={name[1]}")
        }
        assert cost <= min(cost for (name, _), cost in kept.items() if name == "dense")
        over.append(cost / min(kept.values()))
    assert np.mean(over) < 1.1, over


def test_every_method_has_the_solver_that_is_best_for_dense(tiny_pipeline, world, monkeypatch):
    run, other = module.Worker.run, "euler" if solver_name(tiny_pipeline.scheduler) == "unipc" else "unipc"

    def better_by(gains):
        def one(self, job):
            name = parse_method(job.method).solver
            plain = job.method.replace(f":solver={name}", "")
            if name in gains and gains[name] is None:
                return {"refused": "no"}
            result = run(self, replace(job, method=plain))
            return result | {"psnr_converged": result["psnr_converged"] + gains.get(name, 0.0)}

        monkeypatch.setattr(module.Worker, "run", one)

    better_by({other: 6.0, "dpm++": None})
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=36), tuple(SAVED))
    steps = min(n for n in range(2, 46) if level_of("token:0.5", n) + 6 >= 36)
    assert found["method"] == f"token:0.5:solver={other}:steps={steps}" and found["solver"] == other
    assert [*found["left_out"]] and all("dpm++" in text for text in found["left_out"])
    better_by({other: -0.1, "dpm++": -6.0})
    assert "solver" not in tune(tiny_pipeline, REQUESTS, Target(psnr=36), tuple(SAVED))["method"]


def test_decibels_rise_with_steps_as_those_of_dense_with_that_solver():
    gains = {"dense": 6.0, "dense:solver=euler": 3.0}  # dB a doubling of the steps, of a second each

    def run(jobs):
        steps = {job: parse_method(job.method).steps for job in jobs}
        return {
            job: {"step_kinds": ["dense"] * n, "step_seconds": [1.0] * n, "rest_seconds": 0.0, "held_bytes": 0,
                  "psnr_converged": gains[work.family(job.method)] * np.log2(n)}
            for job, n in steps.items()
        }  # fmt: skip

    search = Search(run, REQUESTS, Target(psnr=36))
    search.measure([f"{name}:steps={steps}" for name in gains for steps in (4, 8, 16)], 1)
    for search.dense, gain in gains.items():
        assert search.slope() == pytest.approx(gain / np.log(2))


@pytest.mark.parametrize("error", [ConfigError("no"), BrokenClip("no"), torch.OutOfMemoryError("no\nand how")])
def test_methods_that_make_no_clip_are_left_out_and_named(tiny_pipeline, monkeypatch, error):
    kept = module.generate

    def made(pipeline, request, method):
        if "easycache" in method.text or "solver" in method.text:
            raise error
        return kept(pipeline, request, method)

    monkeypatch.setattr(module, "generate", made)
    monkeypatch.setattr(module, "CONVERGED_STEPS", 12)
    monkeypatch.setattr(module, "MOST_STEPS", 5)
    found = tune(tiny_pipeline, REQUESTS[:2], Target(seconds=60), ("token:0.5", "easycache:0.1"))
    assert found["left_out"]["easycache:0.1"] == "no"
    assert not any("easycache" in row["method"] for row in found["rows"])


@pytest.mark.parametrize("target", [Target(psnr=34), Target(seconds=10), Target(speedup=2)])
@pytest.mark.parametrize("seed", [0, 2])
def test_where_dense_itself_makes_no_clip(tiny_pipeline, world, monkeypatch, target, seed):
    run = module.Worker.run

    def broken(self, job):
        is_refused = job.method.startswith("dense") and job.request.seed == seed
        return {"refused": "The clip is broken."} if is_refused else run(self, job)

    monkeypatch.setattr(module.Worker, "run", broken)
    with pytest.raises(ValueError, match=r"^The clip is broken\.$"):
        tune(tiny_pipeline, REQUESTS, target, tuple(SAVED))


def test_what_breaks_on_a_later_prompt_is_not_chosen(tiny_pipeline, world, monkeypatch):
    run = module.Worker.run

    def broken(self, job):
        is_refused = job.method.startswith("token") and job.request.seed == 2
        return {"refused": "The clip is broken."} if is_refused else run(self, job)

    monkeypatch.setattr(module.Worker, "run", broken)
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=34), tuple(SAVED))
    assert "token" not in found["method"] and "token:0.5" in found["left_out"]
    assert not any("token" in row["method"] for row in found["rows"])


def test_names_may_be_written_as_they_like(tiny_pipeline, world):
    asked = world[0]
    names = ("token:0.5 + mag-cache:0.06", "token:0.5:steps=10", "token:0.5", "dense", "forecast:0.7")
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=34), names)
    assert len(asked) == len(set(asked)) and work.family(found["method"]) == "token:0.5"


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_any_number_of_prompts(tiny_pipeline, world, prompts):
    found = tune(tiny_pipeline, REQUESTS[:prompts], Target(psnr=36), tuple(SAVED))
    assert found["psnr"] >= 36 and (found["psnr_interval"] is None) == (prompts == 1)
    own = [2 * np.sin(3 * i) for i in range(4)]
    shift = np.mean(own[:prompts]) - np.mean(own)
    best = min(exhaustive(world[1], lambda seconds, level: level + shift >= 36))
    assert found["seconds"] == pytest.approx(best[0]) and work.family(found["method"]) == best[2]


def test_the_pair_that_is_most_like_all_goes_first():
    level = {0: 40.0, 1: 30.5, 2: 22.5, 3: 31.0}

    def run(jobs):
        known = {"step_kinds": [], "step_seconds": [], "rest_seconds": 1.0, "held_bytes": 0}
        return {job: known | {"psnr_converged": level[job.request.seed]} for job in jobs}

    search = Search(run, REQUESTS, Target(psnr=36))
    search.measure(["dense:steps=10"], 4)
    assert search.offsets("dense") == pytest.approx([9.0, -0.5, -8.5, 0.0])
    assert search.offsets("token:0.5") == pytest.approx(SHARED * np.array([9.0, -0.5, -8.5, 0.0]))
    search.pair_up()
    assert [request.seed for request in search.requests] == [0, 2, 1, 3]
    search.measure(["token:0.5:steps=10"], 1)
    levels, doubt = search.levels("token:0.5", 12)
    assert levels[10 - 2] == pytest.approx(40 - SHARED * 9)
    assert doubt[10 - 2] > 0 and search.levels("dense", 12)[1][10 - 2] == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(psnr=90), "Nothing keeps 90 dB; the best found keeps"),
        (Target(seconds=0.5), r"Nothing takes at most 0.5 s; the fastest takes some 1.1 s: allow more"),
    ],
)
def test_targets_out_of_reach(tiny_pipeline, world, target, message):
    with pytest.raises(ValueError, match=message):
        tune(tiny_pipeline, REQUESTS, target, tuple(SAVED))


@pytest.mark.parametrize("given", [{}, {"psnr": 30, "seconds": 2}, {"psnr": -1}, {"speedup": float("nan")}])
def test_targets_that_are_none(given):
    with pytest.raises(ValueError, match=r"Give one target|give more than 0"):
        Target(**given)


def test_families_are_methods():
    for name in (*FAMILIES, *(f"{name}:solver=dpm++" for name in FAMILIES)):
        assert fits(f"{name}:steps=17") and work.family(f"{name}:steps=17") == name
    assert not fits("token:0.97:refresh=1:steps=4")


def test_it_runs_and_what_it_writes_is_loaded(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONVERGED_STEPS", 12)
    monkeypatch.setattr(module, "MOST_STEPS", 5)
    found = tune(tiny_pipeline, REQUESTS[:2], Target(seconds=60), ("token:0.5", "forecast:0.7"))
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(found))
    method = load_method(path)
    assert method.text == found["method"] and method.steps == found["steps"]
    request = REQUESTS[0]
    expected = generate(tiny_pipeline, request, method).frames
    with timeripple.load(tiny_pipeline, path) as tuned:
        assert tuned.steps == found["steps"] and tuned.method == method
        video = tiny_pipeline(**replace(request, steps=tuned.steps).arguments(tiny_pipeline)).frames
        assert tuned.summary()["method"] == method.label
    assert np.array_equal((video[0].permute(0, 2, 3, 1) * 255).round().byte().numpy(), expected)
    plain = tiny_pipeline(**request.arguments(tiny_pipeline)).frames  # and it is off again
    dense = generate(tiny_pipeline, request, parse_method("dense")).frames
    assert np.array_equal((plain[0].permute(0, 2, 3, 1) * 255).round().byte().numpy(), dense)


def test_a_step_cache_that_was_planned_for_other_steps_is_refused(tiny_pipeline, tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text('{"method": "token:0.5+forecast:0.7:steps=4"}')
    with timeripple.load(tiny_pipeline, path) as tuned:
        for steps in (3, 8):
            with pytest.raises(ConfigError, match=rf"other steps than the {steps} of this run.*num_inference_steps=4"):
                tiny_pipeline(**replace(REQUESTS[0], steps=steps).arguments(tiny_pipeline))
        assert tiny_pipeline(**replace(REQUESTS[0], steps=tuned.steps).arguments(tiny_pipeline)).frames is not None
    for text in ("{}", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holds no settings of a method"):
            load_method(path)
