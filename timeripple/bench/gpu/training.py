"""Trains Pond's denoiser for the time that is left, by its own command, on the autoencoder of the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from timeripple import ASSETS
from timeripple.bench.gpu.findings import Findings

AFTER = 30  # seconds to measure, save and export


def run(findings: Findings, device: str, small: bool) -> None:
    """No rows; raises RuntimeError with the exit code when training failed. Weights are in the folder `pond` beside
    the findings."""
    out = Path(findings.path).parent / "pond"
    minutes = max(findings.left - AFTER, 1) / 60
    command = [sys.executable, "-m", "timeripple.pond.train", "--device", device, "--minutes", f"{minutes:.2f}"]
    if (finished := ASSETS / "pond" / "vae").is_dir():  # not in an installed package: then it is trained too
        command += ["--autoencoder", str(finished)]
    findings.note(f"Ran timeripple.pond.train for {minutes:.1f} minutes, into {out.name}.")
    code = subprocess.run([*command, "--out", str(out)]).returncode
    if code:
        raise RuntimeError(f"training ended with exit code {code}")
