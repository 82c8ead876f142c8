"""Looking into a run or into a clip, without the page."""

import numpy as np
import pytest

from timeripple.clips.generate import Request
from timeripple.clips.video import write_mp4
from ui.gpu import works
from ui.runs import Limits, Runs
from ui.source import inspected, recorded_inspection, submit_clip, submit_request

REQUEST = Request("a red ball", seed=3, steps=4, num_frames=13, height=32, width=32)


@pytest.fixture
def runs(tmp_path):
    return Runs(Limits(max_upload_pixels=500 * 500, max_upload_seconds=3), tmp_path)


def test_a_run_is_there_once_it_is_done(tiny_pipeline, runs):
    run = submit_request(tiny_pipeline, works(tiny_pipeline), runs, REQUEST)
    assert runs.wait(run, 60)
    seen = inspected(runs, run.id)
    assert (seen.kept, seen.grid.shape) == ((0, 1, 2, 3), (4, 4, 4)) and seen.frames.shape == (13, 32, 32, 3)
    assert inspected(runs, "another") is None and inspected(runs, None) is recorded_inspection()


def test_a_clip_is_looked_into_at_the_size_of_the_form(tiny_pipeline, runs, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
    write_mp4(tmp_path / "own.mp4", clip)
    run = submit_clip(tiny_pipeline, works(tiny_pipeline), runs, str(tmp_path / "own.mp4"), REQUEST)
    assert runs.wait(run, 60)
    assert inspected(runs, run.id).frames.shape == (5, 32, 32, 3)


@pytest.mark.parametrize(("shape", "sentence"), [((80, 32, 32, 3), "5 seconds long"), ((2, 600, 600, 3), "600×600")])
def test_clips_over_a_limit_are_one_sentence(tiny_pipeline, runs, tmp_path, shape, sentence):
    write_mp4(tmp_path / "own.mp4", np.zeros(shape, np.uint8))
    run = submit_clip(tiny_pipeline, works(tiny_pipeline), runs, str(tmp_path / "own.mp4"), REQUEST)
    assert runs.wait(run, 60) and run.state == "failed" and sentence in run.error


def test_no_clip_is_one_sentence(tiny_pipeline, runs):
    with pytest.raises(ValueError, match="There is no clip yet"):
        submit_clip(tiny_pipeline, works(tiny_pipeline), runs, None, REQUEST)
