"""Compiles the Triton kernels for real GPUs, without one, and reads what the compiler says of them.

The figures are the compiler's: registers, spills and shared memory are facts of the generated code, the occupancy is
an estimate from them. None is a time.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from timeripple.attention import triton_kernels
from timeripple.attention.triton_backend import LIST_BLOCK, attend_blocks
from timeripple.attention.triton_planning import INTERPRETED, padded, small_block


@dataclass(frozen=True)
class Target:
    """A GPU architecture. shared_memory: bytes a block may use; the rest, per multiprocessor, limits occupancy."""

    name: str
    gpu: GPUTarget
    shared_memory: int
    shared_memory_in_all: int
    threads: int
    registers: int = 65536


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", GPUTarget("cuda", 80, 32), 163 << 10, 164 << 10, 2048),
        Target("sm_89", GPUTarget("cuda", 89, 32), 99 << 10, 100 << 10, 1536),
        Target("sm_90", GPUTarget("cuda", 90, 32), 227 << 10, 228 << 10, 2048),
        Target("gfx942", GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, 2048, 131072),
    )
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_DIMS = (48, 64, 128, 256)
MODES = {  # of `attend`: what is compiled in
    "dense": {"GATHERED": False, "TILED": False, "BIASED": False, "RESIDUAL": False},
    "token": {"GATHERED": True, "TILED": False, "BIASED": True, "RESIDUAL": True},
    "tile": {"GATHERED": True, "TILED": True, "BIASED": True, "RESIDUAL": True},
}
POINTERS = {  # element types of pointers that do not follow the dtype of the attention
    "*i32": (
        "table",
        "order",
        "starts",
        "counts",
        "query_order",
        "query_starts",
        "query_counts",
        "row_counts",
        "chosen",
        "chosen_counts",
        "window_table",
    ),
    "*fp32": ("row_bias", "weight", "thresholds"),
    "*i64": ("subsets",),
    "*u8": ("computed",),
}
TENSORS = ("query", "key", "value", "residual", "output", "row_key", "row_value", "x", "merged")


@dataclass(frozen=True)
class Build:
    """One kernel with everything that is fixed at compile time."""

    kernel: str
    mode: str
    dtype: str
    head_dim: int
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def config(self) -> str:
        """Everything in words, e.g. "token bf16 d128 128x64 8 warps 2 stages"."""
        blocks = "x".join(str(n) for name, n in self.constants.items() if name in ("BLOCK_M", "BLOCK_N"))
        parts = self.mode, self.dtype, f"d{self.head_dim}" if self.head_dim else "", blocks
        return " ".join(part for part in (*parts, f"{self.warps} warps", f"{self.stages} stages") if part)


def builds(target: Target) -> Iterator[Build]:
    """Every kernel in every configuration the backend launches there, for the head sizes of real models."""
    for dtype, torch_dtype in DTYPES.items():
        for head_dim in HEAD_DIMS:
            size = {"HEAD_DIM": head_dim, "BLOCK_D": padded(head_dim)}
            for mode, constants in MODES.items():
                blocks = attend_blocks(head_dim, torch_dtype, target.name, bool(constants["TILED"]))
                cut = {"BLOCK_M": blocks.query_rows, "BLOCK_N": blocks.key_rows, "UPCAST": False}
                yield Build("attend", mode, dtype, head_dim, size | cut | constants, blocks.warps, blocks.stages)
            merging = {"BLOCK_ROWS": small_block(head_dim)}
            yield Build("merge_rows", "", dtype, head_dim, size | merging, 4, 1)
            deviations = {"AXES": 7, "LEVELS": 3, "BLOCK_W": small_block(head_dim)}
            yield Build("merge_deviations", "", dtype, head_dim, size | deviations, 4, 1)
    yield Build("list_chosen", "", "", 0, {"BLOCK_W": LIST_BLOCK}, 4, 1)


def report(targets: tuple[str, ...] = tuple(TARGETS)) -> Iterator[dict[str, Any]]:
    """Compiles everything, one row each: kernel, target, config (mode, dtype, head_dim, blocks, warps and stages),
    registers (a thread), spills (bytes a thread), shared_bytes (a block) and shared_limit, occupancy (share of the
    threads a multiprocessor can hold, estimated), tensor_cores.

    Raises ValueError for an unknown target and where Triton runs interpreted.
    """
    for name in targets:
        if name not in TARGETS:
            raise ValueError(f"The target {name!r} is unknown; choose from {', '.join(TARGETS)}.")
    if INTERPRETED:
        raise ValueError("TRITON_INTERPRET is set, so nothing is compiled; unset it.")
    return (_compile(build, TARGETS[name]) for name in targets for build in builds(TARGETS[name]))


def _compile(build: Build, target: Target) -> dict[str, Any]:
    function = getattr(triton_kernels, build.kernel)
    signature = {name: _type(name, build) for name in function.arg_names}
    aligned = [name[0] == "*" or "stride_" in argument for argument, name in signature.items()]
    attributes = {(index,): [["tt.divisibility", 16]] for index, is_aligned in enumerate(aligned) if is_aligned}
    source = ASTSource(function, signature, build.constants, attributes)
    options = {"num_warps": build.warps, "num_stages": build.stages}
    compiled = triton.compile(source, target=target.gpu, options=options)
    registers, spills = _resources(compiled.asm, target)
    threads = build.warps * target.gpu.warp_size
    resident = min(
        target.threads // threads,
        target.registers // (max(registers, 1) * threads),
        target.shared_memory_in_all // max(compiled.metadata.shared, 1),
    )
    code = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
    return {
        "kernel": build.kernel,
        "target": target.name,
        "config": build.config,
        "registers": registers,
        "spills": spills,
        "shared_bytes": compiled.metadata.shared,
        "shared_limit": target.shared_memory,
        "occupancy": resident * threads / target.threads,
        "tensor_cores": bool(re.search(r"wgmma\.mma|mma\.sync|v_mfma", code)),
    }


def _type(argument: str, build: Build) -> str:
    if argument in build.constants:
        return "constexpr"
    if argument in TENSORS:
        return f"*{build.dtype}"
    if argument == "scale":
        return "fp32"
    return next((kind for kind, names in POINTERS.items() if argument in names), "i32")


def _resources(code: dict[str, Any], target: Target) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as the assembler (NVIDIA) or the code's metadata (AMD) says."""
    if "amdgcn" in code:
        found = {name: int(n) for name, n in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", code["amdgcn"])}
        return found["vgpr_count"], 4 * found["vgpr_spill_count"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(code["ptx"], encoding="utf-8")
        architecture = re.findall(r"\.target (sm_\w+)", code["ptx"])[0]
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={architecture}", path, "-o", path.with_suffix("")]
        said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stderr
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))
    return int(re.findall(r"Used (\d+) registers", said)[0]), spilled
