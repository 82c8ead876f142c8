"""Pond from prompt to pixels, dense and with reuse."""

from __future__ import annotations

import warnings

from timeripple.bench.attention import request_for
from timeripple.bench.end_to_end import end_to_end
from timeripple.bench.gpu.findings import Findings, reason
from timeripple.clips.generate import generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.pond.pipeline import PondPipeline

METHODS = ("dense", "token:0.7", "token:0.85")
TOKENS = (5184, 9216)
REPEATS = 3


def run(findings: Findings, device: str, small: bool) -> None:
    """Rows: see `bench.end_to_end.end_to_end`, for each number of tokens after a generation to warm up."""
    pipeline = load_pipeline("pond", device)
    for tokens in (256,) if small else TOKENS:
        if findings.left < 5:
            findings.note(f"{tokens} tokens were left out: no time was left")
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _measure(findings, pipeline, tokens, small)
        for sentence in dict.fromkeys(str(warning.message) for warning in caught if "Triton" in str(warning.message)):
            findings.note(f"{tokens} tokens: {sentence}")


def _measure(findings: Findings, pipeline: PondPipeline, tokens: int, small: bool) -> None:
    try:
        for method in () if small else METHODS:  # compiles the kernels in this shape
            generate(pipeline, request_for(tokens), parse_method(method))
        for row in end_to_end(pipeline, (tokens,), METHODS, repeats=1 if small else REPEATS)["rows"]:
            findings.add(row)
    except Exception as error:
        findings.note(f"{tokens} tokens: {reason(error)}")
