"""Compiles the kernels for GPUs that are not here; in processes of their own, where Triton is not interpreted."""

import json
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def kernels(*arguments, environment=ENVIRONMENT):
    command = [sys.executable, "-m", "timeripple", "kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


TARGETS = ["sm_80", "sm_89", "sm_90", "gfx942"]


@pytest.fixture(scope="module")
def result():
    done = kernels("--targets", ",".join(TARGETS), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_chosen_configurations_spill_nothing_and_fit(result, target):
    rows = [row for row in result["rows"] if row["target"] == target]
    assert {row["kernel"] for row in rows} == {"attend", "merge_rows", "merge_deviations", "list_chosen"}
    assert [row["config"] for row in rows if row["spills"]] == []
    assert [row["config"] for row in rows if row["shared_bytes"] > row["shared_limit"]] == []
    for row in rows:
        assert row["registers"] > 0 and 0 < row["occupancy"] <= 1
        half_precision = row["kernel"] == "attend" and "fp32" not in row["config"]
        assert row["tensor_cores"] or not half_precision
    assert {row["target"] for row in result["rows"]} == {*TARGETS}
    assert result["kind"] == "compiled here" and "date" in result["environment"]


def test_an_unknown_target_is_one_sentence():
    done = kernels("--targets", "sm_1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == "The target 'sm_1' is unknown; choose from sm_80, sm_89, sm_90, gfx942."


def test_interpreted_kernels_are_not_compiled():
    done = kernels(environment=ENVIRONMENT | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 2 and "unset it" in done.stderr
