"""Sweeps here and with Ray: the same results, resumed after a crash, retried where a worker dies."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from timeripple.bench.sweep import Job, Worker, sweep
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.quality import measure

REQUESTS = [Request("a red ball", seed=seed, steps=4, num_frames=5, height=32, width=32) for seed in (0, 1)]
JOBS = [Job(request, method) for request in REQUESTS for method in ("dense", "token:0.5", "first-block-cache:0.5")]
TIMES = ("seconds", "attention_seconds")


def settled(results):
    """What does not depend on the clock."""
    return [{name: value for name, value in results[job].items() if name not in TIMES} for job in JOBS]


@pytest.fixture(scope="module")
def local(tiny_pipeline):
    return sweep(JOBS, tiny_pipeline)


def test_results_are_those_of_single_generations(tiny_pipeline, local):
    for request in REQUESTS:
        dense, reused = (generate(tiny_pipeline, request, parse_method(text)) for text in ("dense", "token:0.5"))
        row = local[Job(request, "token:0.5")]
        assert {name: row[name] for name in ("psnr", "ssim")} == measure(reused.frames, dense.frames)
        assert row["saving_all_steps"] == reused.saving["all_steps"] and 0 < row["attention_seconds"] < row["seconds"]
        first = local[Job(request, "dense")]
        assert first["psnr"] is None and first["saving_all_steps"] == 0 and first["seconds"] > 0


def test_finished_jobs_are_taken_from_the_log(tiny_pipeline, local, tmp_path):
    log, counts = tmp_path / "runs.jsonl", []
    first = sweep(JOBS, tiny_pipeline, log)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])  # a crash in the middle of the fifth
    again = sweep(JOBS, tiny_pipeline, log, on_run=lambda *count: counts.append(count))
    assert settled(again) == settled(first) == settled(local) and counts == [(5, 6), (6, 6)]
    assert [again[job] for job in JOBS[:4]] == [first[job] for job in JOBS[:4]]
    assert sweep(JOBS, tiny_pipeline, log, on_run=lambda *count: pytest.fail("run again")) == again


def test_lines_that_hold_no_run_are_passed_over(tiny_pipeline, local, tmp_path):
    log = tmp_path / "runs.jsonl"
    log.write_bytes(b'5\nnull\n"abc"\n[1, 2]\n{"key": [1]}\n{}\n\xff\xfe\n{"key": "half a l')
    assert sweep(JOBS[:1], tiny_pipeline, log).keys() == {JOBS[0]}
    assert sweep(JOBS[:1], tiny_pipeline, log) == sweep(JOBS[:1], tiny_pipeline, log)


def test_an_unknown_engine(tiny_pipeline):
    with pytest.raises(ValueError, match="engine is 'spark'; choose from local, ray"):
        sweep(JOBS, tiny_pipeline, engine="spark")


def load_saved(folder):
    """What a worker of Ray does to get the pipeline."""
    from timeripple.clips.models import load_pond

    return load_pond(folder)


def load_and_die_once(folder, marker):
    """The first worker dies when it is asked for its second generation, whatever that is."""
    pipeline = load_saved(folder)
    if not Path(marker).exists():
        plain, calls = pipeline.decode, []

        def decode(latents):
            calls.append(None)
            if len(calls) > 1:
                Path(marker).write_text("died")
                os._exit(1)
            return plain(latents)

        pipeline.decode = decode
    return pipeline


@pytest.fixture(scope="module")
def saved(tiny_pipeline, tmp_path_factory):
    """The tiny pipeline in a folder, and as a worker loads it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ray_here():
    import ray

    ray.init(
        num_cpus=2, log_to_driver=False, include_dashboard=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    yield
    ray.shutdown()


def test_ray_gives_the_same_and_resumes(saved, ray_here, tmp_path):
    pipeline, log, counts = load_saved(saved), tmp_path / "runs.jsonl", []
    here = sweep(JOBS, pipeline)
    lines = {}
    sweep(JOBS[:3], pipeline, log, "ray", load=partial(load_saved, saved))
    for line in log.read_text().splitlines():
        lines[json.loads(line)["key"]] = line
    assert len(lines) == 3
    there = sweep(JOBS, pipeline, log, "ray", lambda *count: counts.append(count), partial(load_saved, saved))
    assert settled(there) == settled(here) and counts == [(4, 6), (5, 6), (6, 6)]
    assert log.read_text().splitlines()[:3] == list(lines.values())


def test_work_of_a_dead_worker_is_done_by_another(saved, ray_here, tmp_path):
    marker = tmp_path / "marker"
    pipeline = load_saved(saved)
    there = sweep(JOBS, pipeline, None, "ray", load=partial(load_and_die_once, saved, str(marker)))
    assert marker.read_text() == "died" and settled(there) == settled(sweep(JOBS, pipeline))


def test_a_worker_keeps_the_reference_of_its_request(tiny_pipeline):
    worker, calls = Worker(lambda: tiny_pipeline), []
    hook = tiny_pipeline.transformer.register_forward_hook(lambda *_: calls.append(None))
    try:
        for job in JOBS[:3]:
            worker.run(job)
    finally:
        hook.remove()
    assert len(calls) == 2 * (1 + 4 + 4 + 4)  # passes, a step to warm up, and each method once
