"""TeaCache (arXiv 2411.19108): a step is left out while the change of the output, predicted from that of the timestep's
embedding by a fitted polynomial, adds up to less than a threshold. The change of the block stack then returns.

As the authors do it for Wan: the embedding is the projected one that modulates the blocks, and the first and the last
step are computed. The polynomial belongs to a model and has to be fitted on it, which `coefficients` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from torch import Tensor

from timeripple.attention.method import ConfigError, require
from timeripple.baselines.block_stack import StackCache, Streams, leaving_out
from timeripple.baselines.forecast import difference
from timeripple.baselines.mag_cache import RATIOS
from timeripple.baselines.settings import NamedSettings

ORDER = 4  # of the polynomial


@dataclass(frozen=True)
class TeaCacheConfig(NamedSettings, name="teacache"):
    """threshold: of the added-up relative change, 0.05 to 0.08 for Wan 2.1 1.3B."""

    threshold: float = 0.08

    def __post_init__(self) -> None:
        require(self.threshold >= 0, f"threshold {self.threshold} is negative; give 0 or more")

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        """Raises ConfigError for pipelines whose polynomial is not known."""
        if type(pipeline).__name__ != "PondPipeline":
            raise ConfigError(
                f"teacache needs a polynomial fitted to {type(pipeline).__name__}'s model, and only Pond's is known; "
                "fit it with baselines.teacache.coefficients."
            )
        polynomial = json.loads(RATIOS.read_text(encoding="utf-8"))["tea_coefficients"]
        with leaving_out(pipeline, partial(TeaCache, self.threshold, polynomial, num_inference_steps - 1)):
            yield


class TeaCache(StackCache):
    def __init__(self, threshold: float, polynomial: list[float], last: int):
        self.threshold, self.polynomial, self.last = threshold, np.poly1d(polynomial), last
        self.added_up = 0.0
        self.embedding: Tensor | None = None
        self.change: Streams = ()

    def instead(self, step: int, entered: Streams, arguments: dict[str, Any]) -> Streams | None:
        before, self.embedding = self.embedding, arguments["temb"]
        if before is None or step == self.last:
            return None
        self.added_up += float(self.polynomial(relative_change(self.embedding, before)))
        if self.added_up >= self.threshold:
            self.added_up = 0.0
            return None
        return tuple((into + change).to(into.dtype) for into, change in zip(entered, self.change, strict=False))

    def computed(self, step: int, entered: Streams, left: Streams) -> None:
        self.change = difference(left, entered)


def relative_change(now: Tensor, before: Tensor) -> float:
    """L1 distance over the L1 norm of what was before."""
    return float((now.float() - before.float()).abs().mean() / before.float().abs().mean())


def coefficients(pipeline: DiffusionPipeline, runs: list[dict[str, Any]]) -> list[float]:
    """The polynomial of order 4, highest power first, from the relative change of the embedding between neighbouring
    steps to that of the output, over dense runs with these arguments."""
    made: list[Observer] = []

    def observe() -> Observer:
        made.append(Observer())
        return made[-1]

    for arguments in runs:
        with leaving_out(pipeline, observe):
            pipeline(**arguments)
    pairs = np.array([pair for observer in made for pair in observer.pairs])
    return np.polyfit(pairs[:, 0], pairs[:, 1], ORDER).tolist()


class Observer(StackCache):
    """Computes everything, and notes how embedding and output changed at every step after the first."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.before: tuple[Tensor, Tensor] | None = None

    def instead(self, step: int, entered: Streams, arguments: dict[str, Any]) -> Streams | None:
        self.embedding: Tensor = arguments["temb"]
        return None

    def computed(self, step: int, entered: Streams, left: Streams) -> None:
        """Only the output counts."""

    def finish(self, output: Tensor) -> Tensor:
        if self.before is not None:
            embedding, before = self.before
            self.pairs.append((relative_change(self.embedding, embedding), relative_change(output, before)))
        self.before = self.embedding, output
        return output
