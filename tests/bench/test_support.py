"""The table of pipelines in the README is what was tried."""

from pathlib import Path

import pytest
import torch

from timeripple.bench import support
from timeripple.bench.tiny import example_files, small_request, tiny

README = Path(__file__).parents[2] / "README.md"


def test_the_table_in_the_readme_is_what_was_tried():
    found = support.support()
    assert support.table(found) in README.read_text(encoding="utf-8")


def test_what_fails_is_named(tmp_path):
    pipeline = tiny("LTXPipeline")
    request = small_request(pipeline, example_files(tmp_path), steps=support.STEPS)
    pipeline.transformer.proj_out.weight.fill_(torch.nan)
    found, _ = support._tried(pipeline, request, "token:0.5")
    assert found.startswith("fails: dense gave numbers that are not finite")
    assert support._tried(tiny("LTXPipeline"), request, "token:0")[0] == "fails: nothing is saved"


def test_a_table_takes_the_place_of_the_one_between_its_marks():
    text = f"before\n{support.BEGIN}old\n{support.END}\nafter"
    assert support.replaced(text, "new") == "before\nnew\nafter"
    with pytest.raises(ValueError, match="There is no table to replace; put <!-- made by"):
        support.replaced("nothing", "new")
