"""Solvers of the flow from noise to clip, by name, on the noise schedule of the model at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from timeripple.attention.method import ConfigError
from timeripple.pond.pipeline import PondPipeline

SOLVERS = ("unipc", "euler", "dpm++", "heun")
DEFAULT_SOLVER = "unipc"
"""Pond's: what Wan's own pipelines use, and as close to the converged clip in half as many steps as Euler."""


def solver(name: str, scheduler: Any) -> Any:
    """A scheduler of diffusers by its name in `SOLVERS`, with the shift of the noise levels that `scheduler` has.

    Raises ConfigError for a scheduler that does not follow a flow, or shifts by the number of tokens.
    """
    config = scheduler.config
    shift = config.get("shift", config.get("flow_shift"))
    flows = "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"
    if shift is None or not flows or config.get("use_dynamic_shifting"):
        raise ConfigError(
            f"solver={name} needs flow matching with a fixed shift, which {type(scheduler).__name__} of this model "
            "has not; leave the solver out."
        )
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    if name == "heun":
        return FlowMatchHeunDiscreteScheduler(shift=shift)
    multistep = {"unipc": UniPCMultistepScheduler, "dpm++": DPMSolverMultistepScheduler}[name]
    return multistep(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def solver_name(scheduler: Any) -> str:
    """The name of a scheduler in `SOLVERS`, or its class if it has none."""
    names = {
        UniPCMultistepScheduler: "unipc",
        DPMSolverMultistepScheduler: "dpm++",
        FlowMatchEulerDiscreteScheduler: "euler",
        FlowMatchHeunDiscreteScheduler: "heun",
    }
    return names.get(type(scheduler), type(scheduler).__name__)


def evaluations(name: str | None, steps: int) -> int:
    """How often the denoiser is asked, each guidance pass by itself: Heun's second order asks twice but at the end."""
    return 2 * steps - 1 if name == "heun" else steps


@contextmanager
def solving(pipeline: DiffusionPipeline, name: str | None) -> Iterator[None]:
    """Inside, the pipeline has this solver; None: its own. Raises ConfigError where it cannot have it."""
    own = pipeline.scheduler if name else None
    try:
        if name is not None:
            if name == "heun" and not isinstance(pipeline, PondPipeline):
                raise ConfigError(
                    f"solver=heun asks twice at a timestep, which {type(pipeline).__name__} does not tell apart; "
                    "choose another solver."
                )
            pipeline.scheduler = solver(name, own)
        yield
    finally:
        if name is not None:
            pipeline.scheduler = own
