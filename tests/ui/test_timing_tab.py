"""Tables of the tab Timing: kinds stay apart, and the compile report of the repository is shown as it is."""

import json
import re

import pytest

from ui.markup import scatter
from ui.timing_tab import RECORDED, kernel_table, machine, recorded_files, rows_table

KERNELS = json.loads((RECORDED / "kernels.json").read_text())


def test_every_table_leaves_theoretical_savings_out_and_says_which_columns_are_theoretical():
    rows = [
        {"method": "token", "seconds": 1.0, "amdahl_speedup": 3.0, "saving": 0.7, "saving_kind": "realised"},
        {"method": "channel", "seconds": 1.0, "amdahl_speedup": None, "saving": 0.8, "saving_kind": "theoretical"},
    ]
    table = rows_table(rows, "recorded")
    assert "70%" in table and "80%" not in table
    head = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert head == ["method", "seconds", "Amdahl (theoretical)", "saving (realised)"]
    assert rows[1]["saving"] == 0.8


def test_one_thread_is_no_plural():
    where = {"cpu": "A chip", "device": "cpu", "threads": 1, "date": "2026-01-02T03:04:05"}
    assert machine({"environment": where}) == "A chip, 1 thread, 2026-01-02"


def test_what_was_compiled_is_not_among_what_was_timed():
    assert "kernels" not in recorded_files() and "attention-5184" in recorded_files()


@pytest.mark.parametrize("target", sorted({row["target"] for row in KERNELS["rows"]}))
def test_the_recorded_compile_report(target):
    rows = [row for row in KERNELS["rows"] if row["target"] == target]
    table = kernel_table(KERNELS, target)
    assert table.count('<th scope="row">') == len(rows) and f"Compiled for {target}, not run" in table
    for row in rows:
        assert f"<td>{row['config']}</td><td>{row['registers']}</td><td>{row['spills']}</td>" in table


def test_a_scatter_of_points_on_one_line():
    drawn = scatter([("a", 2.0, 30.0, True, "?"), ("b", 2.5, 30.0, False, "?")], [(2.0, 30.0)], "c", "s", "dB")
    assert drawn.count("<circle") == 2 and drawn.count('points="') == 1 and ">2</text>" in drawn
