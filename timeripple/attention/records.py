"""The account of a generation: what every call of attention saved and took, and what that comes to."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from timeripple.attention.method import Kind, Step
from timeripple.attention.timing import Mark, elapsed


class Records:
    """What every call of attention did. Numbers that are still on the device are fetched when they are read."""

    def __init__(self) -> None:
        self._settled: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []

    def add(
        self,
        step: Step,
        pass_name: str,
        layer: str,
        theta: float | Tensor | None,
        saving: Tensor,
        marks: tuple[Mark, Mark, Mark],
    ) -> None:
        """marks: when planning began, when it was done and when attention was done, see `timing.mark`."""
        names = {"step": step.index, "pass": pass_name, "layer": layer, "kind": step.kind}
        self._open.append({**names, "theta": theta, "saving": saving, "marks": marks})

    def add_skipped(self, step: Step, pass_name: str, layer: str, heads: int) -> None:
        """A call that did not come because a cache stood in for the layer: all of it is saved."""
        now = time.perf_counter()
        names = {"step": step.index, "pass": pass_name, "layer": layer, "kind": "cached"}
        self._open.append({**names, "theta": None, "saving": torch.ones(heads), "marks": (now, now, now)})

    def read(self) -> list[dict[str, Any]]:
        """One dict per (step, pass, layer): step, pass, layer, kind (of the step, or "cached"),
        theta, saving (a list, one number per head; 1 lower on refresh steps, which also pay for dense attention),
        plan_seconds, attention_seconds."""
        for record in self._open:
            started, planned, done = record.pop("marks")
            record["theta"] = None if record["theta"] is None else float(record["theta"])
            record["saving"] = record["saving"].tolist()
            record |= {"plan_seconds": elapsed(started, planned), "attention_seconds": elapsed(planned, done)}
        self._settled += self._open
        self._open = []
        return self._settled


def summarise_saving(records: list[dict[str, Any]], steps: tuple[Step, ...], kind: Kind) -> dict[str, Any]:
    """Share of attention saved, averaged over layers, heads and passes.

    kind: "realised" or "theoretical"; reuse_steps: over the reuse window; all_steps: over the whole run;
    per_step: one number per denoising step, 0 where attention was dense or has not run.
    """
    means = mean_by_step(records)
    per_step = [means.get(step.index, 0.0) for step in steps]
    window = [per_step[step.index] for step in steps if step.in_window]
    return {
        "kind": kind,
        "reuse_steps": sum(window) / max(len(window), 1),
        "all_steps": sum(per_step) / max(len(per_step), 1),
        "per_step": per_step,
    }


def saving_by_head(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Share of attention saved by every head of every layer, by the layer's name: mean over all steps and passes."""
    savings: dict[str, list[list[float]]] = {}
    for record in records:
        savings.setdefault(record["layer"], []).append(record["saving"])
    return {layer: [sum(head) / len(head) for head in zip(*rows, strict=True)] for layer, rows in savings.items()}


def mean_by_step(records: list[dict[str, Any]]) -> dict[int, float]:
    """Mean saving over passes, layers and heads of every step that has records."""
    savings: dict[int, list[float]] = {}
    for record in records:
        savings.setdefault(record["step"], []).extend(record["saving"])
    return {step: sum(values) / len(values) for step, values in savings.items()}
