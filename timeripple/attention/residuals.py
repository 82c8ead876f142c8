"""The errors of reuse that feedback keeps from a refresh to the steps after it, within a limit of memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
PASSES = 2  # of guidance; how many there will be is not known when the first error is kept


class Storage:
    """How errors are kept, chosen when the first one is there, so that those of all layers and passes fit.

    In order: as they are, in 16 bits, in 8 bits (a scale for every head), in 16 bits in the memory of the host, where
    that is another, and last in 8 bits for as many layers as fit. limit: bytes, None: no limit on the CPU, half of the
    memory that is free then on a GPU; layers: of the model; tensors: kept of every layer and pass.
    """

    def __init__(self, limit: int | None, layers: int, tensors: int):
        self.limit, self.layers, self.tensors = limit, layers, tensors
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        self.room: float = math.inf
        self._kept: set[str] = set()

    def admit(self, layer: str, error: Tensor) -> bool:
        """Whether there is room for a layer, of which this is an error."""
        if self.dtype is None:
            self._choose(error)
        if layer in self._kept or len(self._kept) < self.room:
            self._kept.add(layer)
        return layer in self._kept

    def full(self, layer: str) -> bool:
        """Whether there is no room for a layer."""
        return len(self._kept) >= self.room and layer not in self._kept

    def report(self) -> dict[str, Any] | None:
        """{"dtype", "device", "layers"}: how errors are kept, and of how many layers; None before the first."""
        if self.dtype is None or self.device is None:
            return None
        return {"dtype": str(self.dtype).removeprefix("torch."), "device": self.device.type, "layers": len(self._kept)}

    def _choose(self, error: Tensor) -> None:
        self.dtype, self.device = error.dtype, error.device
        limit = self.limit
        if limit is None:
            if error.device.type != "cuda":
                return
            limit = torch.cuda.mem_get_info(error.device)[0] // 2
        half = torch.float16 if error.dtype == torch.float16 else torch.bfloat16
        of_one = error.numel() * self.tensors * PASSES
        for dtype in (error.dtype, half, FP8):
            if of_one * dtype.itemsize * self.layers <= limit:
                self.dtype = dtype
                return
        if error.device.type == "cuda":
            self.dtype, self.device = half, torch.device("cpu")
        else:
            self.dtype, self.room = FP8, limit // (of_one * FP8.itemsize)


@dataclass(frozen=True)
class Packed:
    """A tensor [batch, heads, tokens, d] as `Storage` keeps it."""

    value: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, storage: Storage) -> Packed:
        scale = None
        if storage.dtype == FP8:
            scale = tensor.abs().amax((2, 3), keepdim=True).float().clamp(min=1e-12) / torch.finfo(FP8).max
            tensor = tensor / scale
        return cls(tensor.to(storage.device, storage.dtype), scale)

    def tensor(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        value = self.value.to(device).to(dtype if self.scale is None else torch.float32)
        return value if self.scale is None else (value * self.scale).to(dtype)

    @property
    def nbytes(self) -> int:
        return self.value.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True)
class Residual:
    """The error of one layer: dense minus reused output as measured at `time` under `plan`, and its change per unit of
    time since the refresh before, if there was one and it is wanted; device and dtype: of the output."""

    time: float
    plan: object
    value: Packed
    slope: Packed | None
    device: torch.device
    dtype: torch.dtype

    def fits(self, output: Tensor) -> bool:
        """Whether it is of as many samples, heads and tokens, and on the same device."""
        return (self.value.value.shape, self.device) == (output.shape, output.device)


class Residuals:
    """The errors of the layers in one guidance pass. Time is any measure of where in the run a step is."""

    def __init__(self, storage: Storage):
        self.storage = storage
        self._layers: dict[str, Residual] = {}

    def keep(self, layer: str, time: float, error: Tensor, plan: object = None) -> None:
        """Takes the error measured at a step, where there is room for it. plan: whose error it is: what two plans err
        differently is no change in time."""
        if not self.storage.admit(layer, error):
            return
        last, slope = self._layers.get(layer), None
        if (
            last is not None
            and last.fits(error)
            and last.time != time
            and self.storage.tensors == 2
            and last.plan is plan
        ):
            change = error - last.value.tensor(error.device, error.dtype)
            slope = Packed.of(change / (time - last.time), self.storage)
        self._layers[layer] = Residual(time, plan, Packed.of(error, self.storage), slope, error.device, error.dtype)

    def at(self, layer: str, time: float, like: Tensor | None = None) -> Tensor | None:
        """The error to expect at a later step, None where nothing is kept, or nothing of this size."""
        kept = self._layers.get(layer)
        if kept is None or (like is not None and not kept.fits(like)):
            return None
        value = kept.value.tensor(kept.device, kept.dtype)
        if kept.slope is None:
            return value
        return torch.add(value, kept.slope.tensor(kept.device, kept.dtype), alpha=time - kept.time)

    @property
    def nbytes(self) -> int:
        residuals = self._layers.values()
        return sum(r.value.nbytes + (0 if r.slope is None else r.slope.nbytes) for r in residuals)
