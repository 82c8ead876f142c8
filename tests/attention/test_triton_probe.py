"""A Triton that kills or hangs its process is found out by another process, and PyTorch's attention stands in."""

import sys

import pytest
import torch

from timeripple.attention import AttentionCall, dispatch, triton_probe, triton_trial
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("pass", None),
        ("raise ValueError", None),  # caught where it happens
        ("import os; os.abort()", "died of SIGABRT"),
        ("import time; time.sleep(60)", "hung for 1 s"),
    ],
)
def test_only_what_cannot_be_caught_is_a_failure(code, failure, monkeypatch):
    monkeypatch.setattr(triton_probe, "SECONDS", 1)
    found = triton_probe._failure([sys.executable, "-c", code])
    assert (found is None) if failure is None else (failure in found)


def test_a_failure_is_asked_for_once_and_falls_back(monkeypatch):
    asked = []
    monkeypatch.setattr(triton_probe, "_failure", lambda command: asked.append(command) or "a trial died of SIGABRT")
    triton_probe.failure_on.cache_clear()

    class OnCuda:
        """As much of a CUDA tensor as the check looks at."""

        is_cuda, device = True, torch.device("cuda", 1)

    for _ in range(2):
        with pytest.raises(RuntimeError, match="SIGABRT"):
            triton_probe.check(OnCuda)
    assert len(asked) == 1 and asked[0][3:] == ["cuda:1"]
    triton_probe.failure_on.cache_clear()


def test_the_call_goes_on_with_pytorch(monkeypatch):
    def fail(x):
        raise RuntimeError("a trial of its kernels died of SIGABRT")

    monkeypatch.setattr(triton_probe, "check", fail)
    grid = TokenGrid(2, 2, 2)
    call = AttentionCall(*torch.randn(3, 1, 1, 8, 16), grid)
    config = ReuseConfig("token", theta=1.0)
    with pytest.raises(RuntimeError, match="SIGABRT"):
        dispatch.ripple_attention(call, config, backend="triton")
    plan = config.measure(call).plan(call, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        with pytest.warns(UserWarning, match="died of SIGABRT"):
            _, backend = dispatch._carry_out("auto", call, plan, None)
    assert backend == "torch"


def test_the_trial_itself_passes():
    triton_trial.main("cpu")
