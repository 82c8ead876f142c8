"""The registry of runs: order, cancelling, limits, failures, isolation."""

import threading
from dataclasses import dataclass, replace

import pytest

from timeripple.clips.generate import Cancelled
from ui.runs import Limits, QueueFull, Runs

LIMITS = Limits(max_queue=3, max_visitor_runs=9, max_kept=2, max_age=60, max_megabytes=1)


@dataclass
class Step:
    method: str
    step: int


@pytest.fixture
def runs(tmp_path):
    return Runs(LIMITS, tmp_path)


def until_stopped(run):
    """Work that reports step after step until it is asked to stop."""
    step = 0
    while not run.stop.is_set():
        run.report(Step("dense", step := step + 1))
        run.stop.wait(0.01)
    raise Cancelled


def finished(runs, run):
    assert runs.wait(run, 10)
    return run


def test_a_run_reports_its_progress_and_returns_a_result(runs):
    def work(run):
        (run.folder / "result.txt").write_text("done")
        run.report(Step("dense", 1))
        run.report(Step("token", 1))
        return 42

    run = finished(runs, runs.submit(work, ("a prompt", 7)))
    assert (run.state, run.result, run.settings) == ("done", 42, ("a prompt", 7))
    assert list(run.progress) == ["dense", "token"]
    assert runs.find(run.id) is run and run.version >= 4


def test_runs_go_one_after_the_other(runs):
    first, second = runs.submit(until_stopped), runs.submit(lambda run: None)
    assert (runs.ahead(first), runs.ahead(second), second.state) == (0, 1, "queued")
    runs.cancel(first.id)
    assert first.state == "cancelled" and finished(runs, second).state == "done"


def test_cancel_stops_a_run_and_removes_what_it_wrote(runs):
    started = threading.Event()

    def work(run):
        (run.folder / "half.mp4").write_bytes(b"half")
        started.set()
        until_stopped(run)

    run = runs.submit(work)
    assert started.wait(10)
    runs.cancel(run.id)
    assert run.state == "cancelled" and runs.idle(10) and not run.folder.exists()


def test_a_waiting_run_is_cancelled_at_once_and_never_starts(runs):
    running, waiting = runs.submit(until_stopped), runs.submit(lambda run: pytest.fail("started"))
    runs.cancel(waiting.id)
    assert waiting.state == "cancelled"
    runs.cancel(running.id)
    assert finished(runs, running).state == "cancelled" and waiting.result is None


def test_the_queue_is_bounded(runs):
    started = threading.Event()
    waiting = [runs.submit(lambda run: (started.set(), until_stopped(run)))]
    assert started.wait(10)
    waiting += [runs.submit(until_stopped) for _ in range(LIMITS.max_queue)]
    with pytest.raises(QueueFull, match="3 runs are waiting already"):
        runs.submit(until_stopped)
    for run in waiting:
        runs.cancel(run.id)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("The seed is -1; give 0."), "The seed is -1; give 0."),
        (OSError(28, "No space left on device", "/secret/place"), "could not be written: no space left on device."),
        (RuntimeError("shape mismatch at 0x7f"), "The run stopped on an unexpected RuntimeError; try again."),
    ],
)
def test_a_failure_is_one_sentence_and_the_next_run_works(runs, error, sentence):
    def work(run):
        raise error

    run = finished(runs, runs.submit(work))
    assert run.state == "failed" and run.error.endswith(sentence) and "/secret" not in run.error
    assert finished(runs, runs.submit(lambda run: "fine")).result == "fine"


def test_only_so_many_results_are_kept_oldest_go_first(runs):
    done = [finished(runs, runs.submit(lambda run: None)) for _ in range(4)]
    assert [runs.find(run.id) is not None for run in done] == [False, False, True, True]
    assert [run.folder.exists() for run in done] == [False, False, True, True]


def test_results_are_bounded_on_disk(runs):
    def work(run):
        (run.folder / "clip.mp4").write_bytes(bytes(700_000))

    first, second = (finished(runs, runs.submit(work)) for _ in range(2))
    assert runs.find(first.id) is None and runs.find(second.id) is second


def test_results_expire(tmp_path):
    runs = Runs(replace(LIMITS, max_age=60), tmp_path)
    run = finished(runs, runs.submit(lambda run: None))
    run.changed_at -= 61
    assert runs.find(run.id) is None and not run.folder.exists()


def test_ids_are_long_and_nothing_else_finds_a_run(runs):
    first, second = runs.submit(lambda run: 1), runs.submit(lambda run: 2)
    assert first.id != second.id and len(first.id) >= 20
    for stranger in (None, "", "1", first.id[:-1], first.id.swapcase()):
        assert runs.find(stranger) is None
    runs.cancel("unknown")
    assert finished(runs, second).result == 2


def test_limits_come_from_the_environment():
    assert Limits.from_environment({}) == Limits()
    assert Limits.from_environment({"TIMERIPPLE_MAX_STEPS": "12"}).max_steps == 12


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5", ""])
def test_a_bad_limit_is_one_sentence(text):
    with pytest.raises(ValueError, match=r"TIMERIPPLE_MAX_TOKENS is .*; give a whole number of at least 1"):
        Limits.from_environment({"TIMERIPPLE_MAX_TOKENS": text})
