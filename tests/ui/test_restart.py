"""The app as a process that is ended in the middle of a run, and what the next one finds."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from timeripple.bench.load import SIZE, generate, result_of, shown
from timeripple.bench.ui import free_port, server
from timeripple.bench.visitor import Visitor


@pytest.fixture(scope="module")
def model(tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-pond")
    tiny_pipeline.save_pretrained(folder)
    return str(folder)


def running(visitor: Visitor) -> str:
    """A long run, begun; its id."""
    run_id = generate(visitor, "a blue cube", 2, "49x256x256", 50)
    while not any(word in shown(visitor)[0] for word in ("is running", "advance in turn")):
        time.sleep(0.2)
    return run_id


def ended(process: psutil.Process, number: int, seconds: float = 30) -> int:
    """The exit status of a process after a signal."""
    process.send_signal(number)
    return process.wait(seconds)


def test_kill_9_and_an_interrupt_in_mid_run(model, tmp_path):
    """After kill -9 the next start has the finished result and no orphan; an interrupt in mid-run is a clean end."""
    port, arguments = free_port(), ["--model", model]
    with server(str(tmp_path), arguments, port) as (url, number):
        visitor = Visitor(url)
        kept = generate(visitor, "a red ball", 7, SIZE, 3)
        assert "seed 7" in result_of(visitor)
        killed = running(visitor)
        (tmp_path / "tmpabcdef").write_bytes(b"an upload that was arriving")
        os.kill(number, signal.SIGKILL)
        visitor.close()
    assert (tmp_path / "runs-0" / killed).is_dir()
    with server(str(tmp_path), arguments, port) as (url, number):
        visitor, process = Visitor(url), psutil.Process(number)
        assert names_in(tmp_path / "runs-0") == {kept} and not list(tmp_path.glob("tmp*"))
        tick = visitor.event(visitor.component("timer"), "tick")
        visitor.values[visitor.events[tick]["inputs"][0]] = kept
        assert "seed 7" in result_of(visitor)
        assert visitor.file(str(tmp_path / "runs-0" / kept / "side_by_side.mp4")).status_code == 200
        running(visitor)
        visitor.close()
        assert ended(process, signal.SIGINT) in (0, None)
    assert names_in(tmp_path / "runs-0") == {kept}


def names_in(folder: Path) -> set[str]:
    """Of runs, recorded ones aside, which every process lays out anew."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("recorded-")}
