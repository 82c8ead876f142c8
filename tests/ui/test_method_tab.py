"""The pictures of the method show what they say, and the paper's figures agree with one another."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from ui import method_pictures, method_tab


def shapes(picture, name):
    return [shape.attrib for shape in ElementTree.fromstring(picture()).iter(name)]


@pytest.mark.parametrize("picture", [picture for *_, picture in method_pictures.PICTURES])
def test_pictures_are_named_and_nothing_lies_outside(picture):
    drawing = ElementTree.fromstring(picture())
    assert drawing.get("role") == "img" and len(drawing.get("aria-label")) > 20
    _, _, width, height = map(float, drawing.get("viewBox").split())
    for shape in drawing:
        left, top = (float(shape.get(name, shape.get(other, 0))) for name, other in (("x", "cx"), ("y", "cy")))
        right, bottom = left + float(shape.get("width", 0)), top + float(shape.get("height", 0))
        assert 0 <= left <= right <= width and 0 <= top <= bottom <= height


def test_a_group_of_channels_repeats_along_its_own_axis_only():
    squares = iter(shapes(method_pictures.neighbours, "rect"))
    groups = [[[[next(squares)["class"] for _ in "xxx"] for _ in "yyy"] for _ in "ttt"] for _ in "tyx"]
    for group, repeated in zip(groups, "tyx", strict=True):
        along = {
            "t": all(frame == group[0] for frame in group),
            "y": all(row == frame[0] for frame in group for row in frame),
            "x": all(tone == row[0] for frame in group for row in frame for tone in row),
        }
        assert {axis for axis, equal in along.items() if equal} == {repeated}


def test_the_schedule_has_every_step_and_refreshes_evenly_after_three_dense_ones():
    bars = shapes(method_pictures.schedule, "rect")
    assert len(bars) == method_pictures.STEPS
    refreshes = [index for index, bar in enumerate(bars) if bar["class"] == "tr-moving"]
    tallest = max(float(bar["height"]) for bar in bars)
    whole = [index for index, bar in enumerate(bars) if float(bar["height"]) == tallest]
    assert whole == [*range(refreshes[0]), *refreshes]
    gaps = [later - earlier for earlier, later in pairwise(refreshes)]
    assert refreshes[0] == 2 and max(gaps) - min(gaps) <= 1
    words = re.search(r"dense at steps ([\d, ]+) of", method_pictures.schedule())[1]
    assert [int(word) - 1 for word in words.split(",")] == whole


def test_computed_windows_show_every_key_and_others_one():
    sides = [float(square["width"]) for square in shapes(method_pictures.tiles, "rect")]
    keys, representatives = sides.count(10), sides.count(8)
    assert keys % 4 == 0 and keys // 4 + representatives == 3 * 4


def test_speed_ups_of_the_paper_are_those_of_its_latencies():
    dense, *others = [(float(latency), float(speedup.rstrip("×"))) for *_, latency, speedup in method_tab.PAPER]
    for latency, speedup in others:
        assert dense[0] / latency == pytest.approx(speedup, abs=0.01)
