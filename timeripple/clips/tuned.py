"""Settings that `tune` found, in a pipeline."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from diffusers import DiffusionPipeline

from timeripple.attention.method import ConfigError
from timeripple.clips.generate import Request
from timeripple.clips.methods import load_method
from timeripple.clips.pipelines import denoising_steps
from timeripple.clips.solvers import evaluations
from timeripple.hooks import transformers, turns


class Tuned:
    """A method that is on in a pipeline until `close`, also as a with block.

    method: as `parse_method` reads it; steps: what to call the pipeline with as num_inference_steps. A step cache is
    planned for these steps: with it, a run in others raises ConfigError.
    """

    def __init__(self, pipeline: DiffusionPipeline, path: str | Path):
        self.method = load_method(path)
        request = Request.for_pipeline(pipeline, "any").by(self.method)
        self.steps = request.steps
        self._stack = ExitStack()
        steps = denoising_steps(pipeline, request.steps, request.strength)
        self.summary = self._stack.enter_context(self.method.applied(pipeline, steps))
        expected = evaluations(self.method.solver, steps)

        def check(module: Any, args: Any) -> None:
            made = turns(pipeline)
            if made not in (None, expected):
                raise ConfigError(
                    f"{self.method.label} was planned for other steps than the {made} of this run; call the "
                    f"pipeline with num_inference_steps={self.steps}."
                )

        for model in transformers(pipeline) if self.method.cache is not None else ():
            self._stack.callback(model.register_forward_pre_hook(check, prepend=True).remove)

    def close(self) -> None:
        """The pipeline is as it was, to the bit."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def load(pipeline: Any, path: str | Path) -> Tuned:
    """Switch on in a pipeline what `python -m timeripple tune` wrote to a file, in place of what was enabled before:

        tuned = timeripple.load(pipe, "tuned.json")
        frames = pipe(prompt, num_inference_steps=tuned.steps).frames
        tuned.close()

    Raises ConfigError, one sentence, for a file that holds no settings and where the pipeline does not suit them, and
    OSError where it cannot be read.
    """
    return Tuned(pipeline, path)
