"""One part, in this process: `python -m timeripple.bench.gpu PART FILE DEVICE SECONDS [--small]`."""

import sys
from importlib import import_module
from pathlib import Path

from timeripple.bench.gpu.findings import Findings, gpu_environment, reason

HOMES = {
    "kernels": "kernels",
    "attention": "attention",
    "end-to-end": "clips",
    "denoising": "denoising",
    "pipelines": "pipelines",
    "training": "training",
}


def main(part: str, path: str, device: str, seconds: str, *small: str) -> None:
    findings = Findings(Path(path), part, gpu_environment(device), float(seconds))
    try:
        import_module(f"timeripple.bench.gpu.{HOMES[part]}").run(findings, device, bool(small))
    except Exception as error:
        findings.end(f"failed: {reason(error)}")
        raise
    findings.end("finished")


if __name__ == "__main__":
    main(*sys.argv[1:])
