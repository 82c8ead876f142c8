import json

import pytest
import torch

from timeripple.bench import roofline
from timeripple.clips.generate import Cancelled


def test_operations_and_bytes_in_closed_form():
    row = {"heads": 3, "tokens": 100, "head_dim": 16, "saving": 0.75}
    product = 2 * 100 * 100 * 16  # of Q and K: a multiplication and an addition for every channel of every pair
    assert roofline.operations(row | {"saving": 0.0}) == 3 * 2 * product
    assert roofline.operations(row) == 3 * 2 * product / 4
    assert roofline.bytes_moved(row, 2) == 2 * sum(torch.empty(3, 100, 16).numel() for _ in "qkvo")


def test_rows_of_every_length(tiny_pipeline):
    progress = []
    result = roofline.attention_scaling(tiny_pipeline, (324, 576), 0.5, 1, lambda *counts: progress.append(counts))
    json.dumps(result, allow_nan=False)
    assert progress == [(1, 2), (2, 2)] and result["kind"] == "measured here"
    assert [(row["tokens"], row["method"]) for row in result["rows"]] == [
        (tokens, method) for tokens in (324, 576) for method in ("dense", "token:0.5", "tile:0.5", "token, all merged")
    ]
    for row in result["rows"]:
        assert row["gflops"] * row["ms"] * 1e6 == pytest.approx(roofline.operations(row))
    assert result["roofs"]["gflops"] > 0 and result["roofs"]["gbytes"] > 0


def test_it_can_be_stopped_and_refuses_what_is_too_short(tiny_pipeline):
    with pytest.raises(Cancelled):
        roofline.attention_scaling(tiny_pipeline, (324,), should_stop=lambda: True)
    with pytest.raises(ValueError, match="number of tokens is 9; give at least 256"):
        roofline.attention_scaling(tiny_pipeline, (324, 9))
