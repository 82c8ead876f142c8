"""Everything that can be set from outside, in one list: what a visitor may ask for, and where the app is served.

The list is read and checked when the app starts; `python -m ui.limits README.md SECURITY.md` writes it into the tables
of those files.
"""

import difflib
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from timeripple.clips.generate import Request
from timeripple.clips.methods import Method
from timeripple.clips.video import ClipLimits

SECONDS_PER_TERAFLOP = {"cuda": 0.006, "cpu": 6.0}
"""On the slowest machine that is meant: two cores of a server, as measured with Pond (5.7 s), and on a GPU a third of
what attention alone reaches on an H200 (`assets/benchmarks/gpu`)."""
FIXED_SECONDS = 20
"""What a run takes besides the denoiser: loading, decoding, judging, writing."""
CAPTURED_BYTES = 4
HIGHEST = 10**9
NEAR = 0.9  # how alike two names are of which one may be a slip of the other
MARKS = "<!-- made by `python -m ui.limits` -->", "<!-- end -->"


class Setting(NamedTuple):
    """An environment variable that is no limit: default as it is shown, and what it says."""

    variable: str
    default: str
    meaning: str


SERVER = (
    Setting("GRADIO_SERVER_NAME", "127.0.0.1", "address that is listened on; 0.0.0.0 for all"),
    Setting("GRADIO_SERVER_PORT", "7860", "port, 1 to 65535"),
    Setting("GRADIO_ROOT_PATH", "", "path, or whole address, under which a proxy serves the app, such as /timeripple"),
    Setting("GRADIO_TEMP_DIR", "the system's", "folder of results and uploads; results in it survive a restart"),
    Setting("TIMERIPPLE_MODEL", "pond", "what is generated with: pond, a folder, or a name on the hub"),
    Setting("TIMERIPPLE_DEVICE", "auto", "auto, cpu, cuda or cuda:N"),
    Setting("TIMERIPPLE_DTYPE", "auto", "auto, bfloat16, float16 or float32"),
    Setting("TIMERIPPLE_OFFLOAD", "none", "none, model, group or sequential"),
    Setting("TIMERIPPLE_COMPILE", "no", "yes compiles the denoiser: faster after the first minute, and needs g++"),
)


def limit(default: int, meaning: str, least: int = 1) -> int:
    return field(default=default, metadata={"meaning": meaning, "least": least})


@dataclass(frozen=True)
class Limits:
    """What one app allows, whole numbers, most from 1, to `HIGHEST`; TIMERIPPLE_<NAME IN CAPITALS> sets each."""

    max_tokens: int = limit(16_384, "tokens of a clip")
    max_steps: int = limit(50, "denoising steps, at least 4", least=4)
    max_methods: int = limit(8, "methods of one comparison")
    max_lengths: int = limit(8, "numbers of tokens in one measurement of `/timing`")
    max_prompt_characters: int = limit(2_000, "characters of a prompt")
    max_run_seconds: int = limit(900, "seconds that a run may take by estimate, on two cores or one GPU")
    max_wall_seconds: int = limit(3_600, "seconds after which a run is stopped, whatever the estimate said")
    max_gpu_seconds: int = limit(120, "seconds for which a lent GPU (ZeroGPU) is asked for")
    max_captured_megabytes: int = limit(1_024, "megabytes of Q, K and V that `/probe` and `/laboratory` look at")
    max_queue: int = limit(8, "runs that wait, of all visitors")
    max_visitor_runs: int = limit(3, "runs of one visitor that wait or run")
    max_calls: int = limit(64, "calls of the page and the API that wait to be looked at")
    max_kept: int = limit(50, "finished runs that are kept")
    max_age: int = limit(7_200, "seconds for which results and uploads are kept")
    max_megabytes: int = limit(500, "megabytes of results on disk")
    max_sessions: int = limit(100, "open pages whose picks are remembered; older ones begin anew")
    max_upload_megabytes: int = limit(8, "megabytes of a file, and of a request")
    max_visitor_megabytes: int = limit(40, "megabytes of uploads that one address has on disk")
    max_uploads_megabytes: int = limit(400, "megabytes of uploads on disk, of all visitors")
    max_upload_wait: int = limit(120, "seconds that sending a file may take")
    max_upload_side: int = limit(4_096, "pixels of the longer side of an uploaded clip")
    max_upload_pixels: int = limit(8_847_360, "pixels of a frame of an uploaded clip")
    max_upload_rate: int = limit(120, "frames a second of an uploaded clip")
    max_upload_seconds: int = limit(60, "seconds of an uploaded clip")
    max_decode_seconds: int = limit(20, "seconds that reading an uploaded clip may take")
    max_decode_megabytes: int = limit(1_024, "megabytes of memory that reading an uploaded clip may take")

    def __post_init__(self):
        for each in fields(self):
            least = each.metadata["least"]
            if not least <= (value := getattr(self, each.name)) <= HIGHEST:
                raise ValueError(f"{each.name} is {value}; give {least} to {HIGHEST:,}, such as {each.default}.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Limits":
        """Raises ValueError, one sentence, for a variable that is no whole number from 1, and for names of ours that
        are no settings."""
        values = {}
        for each in fields(cls):
            text = environment.get(variable := variable_of(each.name), str(each.default)).strip()
            least = each.metadata["least"]
            if not (text.isascii() and text.isdecimal() and len(text) <= 12 and least <= int(text) <= HIGHEST):
                raise ValueError(
                    f"{variable} is {text[:40]!r}; give a whole number of at least {least}, such as {each.default}."
                )
            values[each.name] = int(text)
        known = [*map(variable_of, values), *(setting.variable for setting in SERVER)]
        for name in environment:
            if name.startswith("TIMERIPPLE_") and name not in known:
                near = difflib.get_close_matches(name, known, 1, NEAR)
                raise ValueError(f"{name} is no setting; " + (f"is {near[0]} meant?" if near else "see the README."))
        return cls(**values)

    @property
    def clip(self) -> ClipLimits:
        """What an uploaded clip may be."""
        return ClipLimits(
            self.max_upload_side, self.max_upload_pixels, self.max_upload_rate, self.max_upload_seconds,
            self.max_decode_seconds, self.max_decode_megabytes,
        )  # fmt: skip

    def check(self, pipeline, request: Request, evaluations: int | None = None) -> None:
        """Raises ValueError, one sentence, for a request that is too large. evaluations: of the denoiser, of all
        methods together, or None for the request's steps."""
        self.check_steps(request)
        for text in (request.prompt, request.negative_prompt):
            if len(text) > self.max_prompt_characters:
                raise ValueError(
                    f"This prompt has {len(text):,} characters; the limit here is {self.max_prompt_characters:,}."
                )
        if (tokens := request.tokens(pipeline)) > self.max_tokens:
            raise ValueError(f"This size is {tokens:,} tokens; the limit here is {self.max_tokens:,}.")
        self._check_seconds(seconds_needed(pipeline, request, evaluations), request.steps)

    def check_comparison(self, pipeline, request: Request, methods: Sequence[Method]) -> None:
        """`check` for every method, and for all of them together."""
        self.check_number(len(methods))
        self.check(pipeline, request, sum(method.evaluations(request.steps) for method in methods))
        for method in methods:
            self.check(pipeline, request.by(method))

    def check_number(self, methods: int) -> None:
        """Raises ValueError, one sentence, for too many methods, before any of them is read."""
        if methods > self.max_methods:
            raise ValueError(f"These are {methods} methods; the limit here is {self.max_methods}.")

    def check_steps(self, request: Request) -> None:
        """Raises ValueError, one sentence, for too many steps."""
        if request.steps > self.max_steps:
            raise ValueError(f"These are {request.steps} steps; the limit here is {self.max_steps}.")

    def check_captured(self, pipeline, request: Request, steps: int) -> None:
        """Raises ValueError, one sentence, where q, k and v of all layers at so many steps are too much to look at."""
        config = pipeline.transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        wanted = 3 * CAPTURED_BYTES * config.num_layers * request.tokens(pipeline) * width * steps / 1e6
        if wanted > self.max_captured_megabytes:
            raise ValueError(
                f"Looking at {steps} steps of this size takes {wanted:,.0f} MB; the limit here is "
                f"{self.max_captured_megabytes:,}, so name fewer steps or a smaller size."
            )

    def check_lengths(self, pipeline, requests: Sequence[Request]) -> None:
        """Raises ValueError, one sentence, for a measurement at too many lengths or at too large ones."""
        if len(requests) > self.max_lengths:
            raise ValueError(f"These are {len(requests)} numbers of tokens; the limit here is {self.max_lengths}.")
        for request in requests:
            self.check(pipeline, request)
        self._check_seconds(sum(seconds_needed(pipeline, request) for request in requests))

    def _check_seconds(self, seconds: int, steps: int | None = None) -> None:
        """steps: that take so long, to say how many would not."""
        most, of = (self.max_gpu_seconds, " of a lent GPU") if gpu_is_lent() else (self.max_run_seconds, "")
        if seconds <= most:
            return
        fitting = int(steps * (most - FIXED_SECONDS) / (seconds - FIXED_SECONDS)) if steps else 0
        fewer = f"at most {fitting} steps" if fitting > 0 else "fewer steps"
        raise ValueError(
            f"This would take about {seconds:,} seconds{of}; the limit here is {most:,}, so ask for {fewer}, "
            "fewer methods or a smaller size."
        )


def seconds_needed(pipeline, request: Request, evaluations: int | None = None) -> int:
    """Estimate of the time of a run: two guidance passes of dense attention and linear layers, 4 N^2 d and 24 N d^2
    floating-point operations a layer, as often as the denoiser is asked; evaluations: None for the request's steps."""
    config = pipeline.transformer.config
    tokens, width = request.tokens(pipeline), config.num_attention_heads * config.attention_head_dim
    layer = 4 * tokens**2 * width + 24 * tokens * width**2
    total = 2 * config.num_layers * layer * (evaluations or request.steps)
    pace = SECONDS_PER_TERAFLOP.get(pipeline.device.type, SECONDS_PER_TERAFLOP["cpu"])
    return math.ceil(FIXED_SECONDS + pace * total / 1e12)


def gpu_is_lent() -> bool:
    """Whether this is a Space on ZeroGPU, where a GPU is lent for each piece of work and counts towards a quota."""
    return importlib.util.find_spec("spaces") is not None


def check_server(environment: Mapping[str, str]) -> int:
    """The port. Raises ValueError, one sentence, for a port, a root path or a choice that cannot be."""
    text, root = environment.get("GRADIO_SERVER_PORT", "7860"), environment.get("GRADIO_ROOT_PATH", "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ValueError(f"GRADIO_SERVER_PORT is {text[:40]!r}; give a port from 1 to 65535, such as 7860.")
    if root and (not root.startswith(("/", "http://", "https://")) or root.endswith("/") or set(root) & set(" <>\"'")):
        raise ValueError(f"GRADIO_ROOT_PATH is {root[:80]!r}; begin with / and end without, such as /timeripple.")
    if (compile := environment.get("TIMERIPPLE_COMPILE", "no")) not in ("yes", "no"):
        raise ValueError(f"TIMERIPPLE_COMPILE is {compile[:40]!r}; give yes or no.")
    return int(text)


def variable_of(name: str) -> str:
    return f"TIMERIPPLE_{name.upper()}"


def table() -> str:
    """The list as a table in Markdown."""
    rows = [(setting.variable, setting.default or "none", setting.meaning) for setting in SERVER]
    rows += [(variable_of(each.name), f"{each.default:,}", each.metadata["meaning"]) for each in fields(Limits)]
    lines = [f"| `{variable}` | {default} | {meaning} |" for variable, default, meaning in rows]
    return "\n".join(["| variable | default | what it says |", "|---|---|---|", *lines])


def written(text: str) -> str:
    """A file's text, with the table between `MARKS` made anew. Raises ValueError where there is no such place."""
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise ValueError(f"The text has no place for the table; put {MARKS[0]} and {MARKS[1]} around it.")
    return f"{before}{begin}\n{table()}\n{end}{after}"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
