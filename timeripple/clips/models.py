"""Loading the bundled model, a folder or a model of the Hugging Face hub, with a look at the memory first."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import cast

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from timeripple import ASSETS
from timeripple.clips.memory import free_memory
from timeripple.clips.solvers import DEFAULT_SOLVER, solver
from timeripple.hooks import family_of, transformers
from timeripple.pond.model import fastest_dtype
from timeripple.pond.pipeline import PondPipeline

POND = ASSETS / "pond"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
OFFLOADS = ("none", "model", "group", "sequential")
SIBLINGS: dict[tuple[str, str | None], str] = {
    ("WanPipeline", "video"): "WanVideoToVideoPipeline",
    ("CogVideoXPipeline", "video"): "CogVideoXVideoToVideoPipeline",
    ("LTXPipeline", "image"): "LTXImageToVideoPipeline",
    ("LTXPipeline", "video"): "LTXConditionPipeline",
}
"""Pipelines that begin with a picture or video, by what they share all components with."""
RESERVE = 1.1  # activations and the CUDA context take some memory too


def load_pipeline(
    model: str = "pond",
    device: str = "auto",
    dtype: str = "auto",
    offload: str = "none",
    takes: str | None = None,
    compile: bool = False,
) -> DiffusionPipeline:
    """A pipeline that is ready to generate.

    model: "pond", the bundled one; a folder that `save_pretrained` wrote; or a name on the hub, "owner/name". device:
    "auto" is the GPU where there is one. dtype: of the denoiser and text encoders, "auto", "bfloat16", "float16" or
    "float32"; auto is bfloat16 where the device multiplies in it and float32 elsewhere; the autoencoder stays in
    float32. offload: what waits in the memory of the host: "none"; "model", the components that are not at work;
    "group", blocks of the denoiser too; "sequential", all but the layer at work. takes: "image" or "video", what is to
    begin with, where the same weights serve another pipeline for that, see `SIBLINGS`. compile: the blocks of the
    denoiser, by torch.compile, at the first generation of every size; PyTorch keeps what it compiled for the next
    start. Raises ValueError, one sentence, for what is missing, gated, no video pipeline, or larger than the memory,
    which is found out before anything is loaded.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    precision = _precision(dtype, device)
    if offload not in OFFLOADS:
        raise ValueError(f"The offload is {offload!r}; choose from {', '.join(OFFLOADS)}.")
    if offload != "none" and torch.device(device).type != "cuda":
        raise ValueError(f"Offload {offload!r} needs a GPU, and the device is {device}; leave it out.")
    if compile:
        _check_compiler(device)
    folder = POND if model == "pond" else _find(model)
    dtypes = {"transformer": precision, "transformer_2": precision, "default": precision, "vae": torch.float32}
    try:
        is_pond = DiffusionPipeline.load_config(folder)["_class_name"] == "PondPipeline"
        if is_pond:
            dtypes = {"transformer": precision, "default": torch.float32}
        else:
            _check_memory(folder, model, precision, device, offload)
        loader = PondPipeline if is_pond else DiffusionPipeline
        pipeline = loader.from_pretrained(folder, local_files_only=Path(folder).is_dir(), dtype=dtypes)
    except TooLarge:
        raise
    except Exception as error:  # whatever a folder that is no model makes diffusers raise
        raise ValueError(f"The model {model} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if not any(family_of(part) for part in pipeline.components.values() if isinstance(part, ModelMixin)):
        raise ValueError(f"{model} is a {type(pipeline).__name__}, in which no video transformer was found.")
    sibling = SIBLINGS.get((type(pipeline).__name__, takes))
    if sibling is not None:
        pipeline = getattr(diffusers, sibling).from_pipe(pipeline)
    if is_pond:
        pipeline.scheduler = solver(DEFAULT_SOLVER, pipeline.scheduler)
    _place(pipeline, device, offload)
    if compile:
        _compile(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pond(model: str = "pond", compile: bool = False) -> PondPipeline:
    """`load_pipeline` for what only Pond and models of its kind can do. Raises ValueError for others."""
    pipeline = load_pipeline(model, compile=compile)
    if not isinstance(pipeline, PondPipeline):
        raise ValueError(f"{model} is a {type(pipeline).__name__}; this needs Pond's prompts and sizes, so give pond.")
    return pipeline


class TooLarge(ValueError):
    """The model does not fit; the message is one sentence."""


def parameter_counts(folder: str | Path) -> dict[str, int]:
    """Parameters of the components of a pipeline, from their configurations alone, by component.

    folder: of the pipeline, or its name on the hub, from where only configurations are fetched.
    """
    counts = {}
    for name, (library, kind) in _components(folder).items():
        with torch.device("meta"):
            model = _empty(library, kind, folder, name)
        if isinstance(model, torch.nn.Module):
            counts[name] = sum(parameter.numel() for parameter in model.parameters())
    return counts


def _components(folder: str | Path) -> dict[str, tuple[str, str]]:
    """Library and class of the components that have weights, by name."""
    index = DiffusionPipeline.load_config(folder)
    parts = {name: tuple(part) for name, part in index.items() if isinstance(part, list) and len(part) == 2}
    return {
        name: (library, kind)
        for name, (library, kind) in parts.items()
        if library in ("diffusers", "transformers") and re.search("Model|Autoencoder|Encoder", kind or "")
    }


def _empty(library: str, kind: str, folder: str | Path, name: str) -> nn.Module:
    """A component without memory."""
    if library == "transformers":
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, subfolder=name)
        return getattr(transformers, kind)._from_config(config)
    part = getattr(diffusers, kind)
    return part.from_config(part.load_config(folder, subfolder=name))


def _precision(dtype: str, device: str) -> torch.dtype:
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"The dtype is {dtype!r}; choose from auto, {', '.join(DTYPES)}.")
    try:
        return fastest_dtype(device) if dtype == "auto" else DTYPES[dtype]
    except RuntimeError as error:
        raise ValueError(f"The device {device!r} is not one that PyTorch knows here: {error}") from None


def _find(model: str) -> str:
    """The folder, or the name on the hub once its index could be read there."""
    if (Path(model) / "model_index.json").is_file():
        return model
    if Path(model).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(
            f'There is no model at {model}; give "pond", a folder that holds model_index.json, or a name on the '
            "Hugging Face hub, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        hf_hub_download(model, "model_index.json")
    except GatedRepoError:
        raise ValueError(
            f"{model} is gated: accept its licence on its page, then log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"The hub has no model {model}, or it is private: check the name, or `hf auth login`."
        ) from None
    except LocalEntryNotFoundError:
        raise ValueError(f"{model} is neither a folder nor in the cache, and the hub cannot be reached.") from None
    except EntryNotFoundError:
        raise ValueError(
            f"{model} has no model_index.json, so it is no pipeline of diffusers; look for one that is."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} cannot be found on the hub: {' '.join(str(error).split())[:200]}") from None
    return model


def _check_memory(folder: str | Path, model: str, dtype: torch.dtype, device: str, offload: str) -> None:
    """Raises TooLarge where weights do not fit on the device, or in the memory of the host they wait in."""
    counts = parameter_counts(folder)
    sizes = {name: count * (4 if name == "vae" else dtype.itemsize) for name, count in counts.items()}
    host = free_memory()
    wanted = [(sum(sizes.values()), host, "memory")]
    if torch.device(device).type == "cuda":
        on_gpu = {"none": sum(sizes.values()), "model": max(sizes.values(), default=0)}.get(offload, 0)
        wanted.append((on_gpu, torch.cuda.mem_get_info(device)[0], "GPU memory"))
        if offload == "none":
            wanted = wanted[1:]
    for needed, free, place in wanted:
        if needed * RESERVE > free:
            remedy = "a smaller model or dtype" if place == "memory" or offload != "none" else "offload model or group"
            raise TooLarge(
                f"{model} needs about {needed * RESERVE / 1e9:.1f} GB of {place} in {_name(dtype)}, and "
                f"{free / 1e9:.1f} GB are free; try {remedy}."
            )


def _place(pipeline: DiffusionPipeline, device: str, offload: str) -> None:
    if offload == "none":
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(
            onload_device=torch.device(device),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=True,
        )


def _check_compiler(device: str) -> None:
    if torch.device(device).type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise ValueError(
            "Compiling for the CPU needs a C++ compiler, and there is none; install g++ or do not compile."
        )


def _compile(pipeline: DiffusionPipeline) -> None:
    for part in cast(list[ModelMixin], transformers(pipeline)):
        if not part._repeated_blocks:
            raise ValueError(f"Of {type(part).__name__}, diffusers knows no blocks to compile; do not compile it.")
        part.compile_repeated_blocks(fullgraph=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
