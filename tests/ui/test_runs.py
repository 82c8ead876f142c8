"""The registry of runs: order, cancelling, limits, failures, isolation."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import pytest

from timeripple.clips.generate import Cancelled
from ui.index import claim
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


def test_visitors_take_turns(tmp_path):
    """Three of one visitor, then one of another: the other's comes second."""
    runs, order, go = Runs(Limits(), tmp_path), [], threading.Event()
    first = runs.submit(lambda run: go.wait(10), visitor="a")
    waiting = [runs.submit(lambda run, name=name: order.append(name), visitor=name[0]) for name in ("a1", "a2", "b1")]
    assert [runs.ahead(run) for run in waiting] == [2, 3, 1] and runs.ahead(first) == 0
    go.set()
    assert all(runs.wait(run, 10) for run in waiting) and order == ["b1", "a1", "a2"]


def test_one_visitor_cannot_fill_the_queue(tmp_path):
    runs, go = Runs(Limits(), tmp_path), threading.Event()
    mine = [runs.submit(lambda run: go.wait(10), visitor="a") for _ in range(Limits().max_visitor_runs)]
    with pytest.raises(QueueFull, match="You have 3 runs waiting already"):
        runs.submit(lambda run: None, visitor="a")
    other = runs.submit(lambda run: "fine", visitor="b")
    go.set()
    assert finished(runs, other).result == "fine" and all(finished(runs, run).state == "done" for run in mine)
    assert finished(runs, runs.submit(lambda run: "again", visitor="a")).result == "again"


def test_cancelling_answers_at_once_whatever_the_run_does(runs):
    started, go = threading.Event(), threading.Event()

    def stubborn(run):
        started.set()
        go.wait(30)
        (run.folder / "late.mp4").write_bytes(b"late")

    run = runs.submit(stubborn)
    assert started.wait(10)
    runs.cancel(run.id)
    assert run.state == "cancelled" and runs.wait(run, 0)
    go.set()
    assert runs.idle(10) and run.state == "cancelled" and not run.folder.exists()


def test_a_run_that_takes_too_long_is_stopped(tmp_path):
    runs = Runs(Limits(max_wall_seconds=1), tmp_path)
    run = finished(runs, runs.submit(until_stopped))
    assert (run.state, run.error) == ("failed", "The run was stopped after 1 seconds, the limit here.")


def test_a_result_that_is_too_large_is_said(runs):
    run = finished(runs, runs.submit(lambda run: (run.folder / "clip.mp4").write_bytes(bytes(1_100_000))))
    assert run.state == "failed" and "This result has 1 MB; the limit here is 1" in run.error
    assert not run.folder.exists()


def test_what_somebody_waits_for_is_in_view_before_the_page_has_asked(tmp_path, monkeypatch):
    """Cancelled at once, and then many others finish: the page still finds out what came of it."""
    runs = Runs(replace(LIMITS, max_queue=9), tmp_path)
    monkeypatch.setattr("ui.runs.visitor_now", lambda: "a")
    mine = runs.submit(until_stopped)
    runs.cancel(mine.id)
    monkeypatch.setattr("ui.runs.visitor_now", lambda: "")
    for visitor in "bcdef":
        finished(runs, runs.submit(lambda run: None, visitor=visitor))
    assert runs.find(mine.id) is mine and mine.state == "cancelled"


def test_results_of_others_and_those_in_view_are_the_last_to_go(tmp_path, monkeypatch):
    runs = Runs(Limits(max_kept=3), tmp_path)
    other = finished(runs, runs.submit(lambda run: None, visitor="b"))
    mine = [finished(runs, runs.submit(lambda run: None, visitor="a"))]
    monkeypatch.setattr("ui.runs.visitor_now", lambda: "a")
    assert runs.find(mine[0].id)  # looks at it
    monkeypatch.setattr("ui.runs.visitor_now", lambda: "")  # by a program that does not wait
    mine += [finished(runs, runs.submit(lambda run: None, visitor="a")) for _ in range(4)]
    assert [runs.find(run.id) is not None for run in (other, *mine)] == [True, True, False, False, False, True]
    runs.leave("a")
    last = finished(runs, runs.submit(lambda run: None, visitor="a"))
    assert runs.find(mine[0].id) is None and runs.find(last.id) is last and runs.find(other.id) is other


def test_recorded_results_are_no_runs(tmp_path):
    recorded = tmp_path / "ball"
    recorded.mkdir()
    (recorded / "dense.mp4").write_bytes(bytes(500_000))
    runs = Runs(replace(LIMITS, max_kept=1), tmp_path / "here")
    mine = finished(runs, runs.submit(lambda run: 1))
    shown = {runs.adopt(recorded, {"a": 1}, ("b",)).id for _ in range(50)}
    assert len(shown) == 1 and runs.find(mine.id) is mine
    assert (runs.find(shown.pop()).folder / "dense.mp4").stat().st_size == 500_000


def test_finished_results_survive_and_the_rest_does_not(tmp_path):
    runs = Runs(LIMITS, tmp_path)
    done = finished(runs, runs.submit(lambda run: {"psnr": (run.folder / "a.mp4").write_bytes(b"abc")}, ("red", 7)))
    running = runs.submit(until_stopped)
    while running.state != "running":
        pass
    (done.folder.parent / "left over").mkdir()
    assert runs.close() and running.error == "The server is being stopped; please generate again later."
    again = Runs(LIMITS, tmp_path)
    kept = again.find(done.id)
    assert (kept.state, kept.result, kept.settings, kept.bytes) == ("done", {"psnr": 3}, ("red", 7), 3)
    assert (kept.folder / "a.mp4").read_bytes() == b"abc" and again.find(running.id) is None
    assert [path.name for path in kept.folder.parent.iterdir() if path.is_dir()] == [done.id]


def test_processes_on_one_machine_have_a_folder_each(tmp_path):
    first, second = Runs(LIMITS, tmp_path), Runs(LIMITS, tmp_path)
    done = finished(first, first.submit(lambda run: 1))
    assert done.folder.parent.name == "runs-0" and second.find(done.id) is None
    assert finished(second, second.submit(lambda run: 1)).folder.parent.name == "runs-1"
    assert first.alone and not second.alone


def test_apps_that_start_at_once_do_not_remove_each_others_folders(tmp_path):
    for attempt in range(20):
        for number in range(6):
            (tmp_path / str(attempt) / f"runs-{number}" / "left over").mkdir(parents=True)
        with ThreadPoolExecutor(4) as pool:
            claimed = list(pool.map(claim, [tmp_path / str(attempt)] * 4))
        assert len({index.folder for index in claimed}) == 4 and all(index.folder.is_dir() for index in claimed)
        assert all(index.kept() == [] for index in claimed)
        for index in claimed:
            index.close()


def test_an_index_that_is_broken_is_made_anew(tmp_path):
    (tmp_path / "runs-0" / "orphan").mkdir(parents=True)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "runs-0.sqlite").write_bytes(b"no database" * 1000)
    runs = Runs(LIMITS, tmp_path)
    assert finished(runs, runs.submit(lambda run: 2)).result == 2
    assert not (tmp_path / "runs-0" / "orphan").exists()


def test_a_full_disk_costs_the_index_and_not_the_run(runs):
    runs._index._connection.close()  # what sqlite then raises is its own kind of error
    run = finished(runs, runs.submit(lambda run: 3))
    assert (run.state, run.result) == ("done", 3)


def test_only_folders_of_runs_are_removed_and_odd_indexes_made_anew(tmp_path):
    for name in ("runs-hello", "runs-7", "index"):
        (tmp_path / name).mkdir()
    (tmp_path / "index" / "claims.sqlite").write_bytes(b"no database" * 1000)
    with sqlite3.connect(tmp_path / "index" / "runs-0.sqlite") as older:
        older.execute("create table runs (id text, settings text)")
    older.close()
    index = claim(tmp_path)
    assert index.folder == tmp_path / "runs-0" and index.kept() == [] and index.alone
    assert (tmp_path / "runs-hello").is_dir() and not (tmp_path / "runs-7").exists()


def test_a_disk_that_is_full_at_the_start_is_one_sentence(tmp_path, monkeypatch):
    class Full(sqlite3.Connection):
        def execute(self, text, *values):
            if text.startswith("create"):
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return super().execute(text, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Full))
    with pytest.raises(OSError, match=r"sqlite cannot be written: database or disk is full\.$"):
        claim(tmp_path)
