"""Whether Triton compiles and runs on a device, tried in a child process: a compiler that takes its process with it
must not take ours. What fails with an exception needs no child; `dispatch` catches it where it happens.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import cache

import torch

TRIAL = "timeripple.attention.triton_trial"
SECONDS = 120  # an uncached compilation takes some ten


def check(x: torch.Tensor) -> None:
    """Raises RuntimeError where kernels on the device of x would kill or hang this process."""
    if x.is_cuda:
        failure = failure_on(x.device.index)
        if failure is not None:
            raise RuntimeError(failure)


@cache
def failure_on(index: int) -> str | None:
    """Why Triton must not be tried on cuda:index, in one clause, or None. Asked once in a process."""
    return _failure([sys.executable, "-m", TRIAL, f"cuda:{index}"])


def _failure(command: list[str]) -> str | None:
    try:
        code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS).returncode
    except subprocess.TimeoutExpired:
        return f"a trial of its kernels in a process of its own hung for {SECONDS} s"
    except OSError:  # no processes can be started here: there is no telling
        return None
    if code >= 0:  # done, or an exception, which will be caught
        return None
    return f"a trial of its kernels in a process of its own died of {signal.Signals(-code).name}"
