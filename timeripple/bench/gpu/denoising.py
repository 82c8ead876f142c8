"""Whole denoising runs in the size of a real model: the pipeline, transformer and scheduler of Wan 2.1 1.3B with random
weights, on which seconds do not depend. What comes out shows nothing, so no quality is measured."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from timeripple import disable, enable
from timeripple.attention.timing import now
from timeripple.bench.gpu.findings import Findings, reason
from timeripple.clips.generate import Request

SHAPE, STEPS, SMALL_STEPS = "wan-1.3b 81x480x832", 14, 5
SIZE: dict[str, Any] = {"num_frames": 81, "height": 480, "width": 832}
SMALL_SIZE: dict[str, Any] = {"num_frames": 9, "height": 64, "width": 64}
METHODS = ("token:0.5", "token:0.75", "token:0.85")
WARMUP_STEPS = 3  # dense, refreshed, reused: every kernel is compiled
TEXT, TEXT_DIM = 512, 4096


def run(findings: Findings, device: str, small: bool) -> None:
    """Rows: shape, tokens, method, steps, seconds (text and decoding apart), speedup, relative_difference (of the
    latents to dense: not 0, or nothing was reused), failure; dense once more at the end."""
    for message in ("Triton kernels do not run", "Attention stays dense"):
        warnings.filterwarnings("error", message=message)
    size, steps = (SMALL_SIZE, SMALL_STEPS) if small else (SIZE, STEPS)
    pipeline, inputs = build(device, small)
    tokens = Request("", **size).tokens(pipeline)
    dense: tuple[float, torch.Tensor] | None = None
    for method in ("dense", *METHODS, "dense"):
        if dense and findings.left < 2 * dense[0]:
            findings.note(f"{method} was left out: no time was left")
            continue
        row = {"shape": SHAPE, "tokens": tokens, "method": method, "steps": steps, "failure": None}
        try:
            if method != "dense":
                enable(pipeline, method)
            if not small:  # compiles the kernels in this shape
                generate(pipeline, inputs, size, WARMUP_STEPS)
            seconds, latents = generate(pipeline, inputs, size, steps)
            if method == "dense" and dense is None:
                dense = seconds, latents
            row |= {"seconds": seconds, "speedup": None, "relative_difference": None}
            if dense is not None:
                row["speedup"] = dense[0] / seconds
                row["relative_difference"] = ((latents - dense[1]).norm() / dense[1].norm()).item()
            findings.add(row)
        except Exception as error:
            findings.add(row | {"failure": reason(error)})
        finally:
            if method != "dense":
                disable(pipeline)


def build(device: str, small: bool) -> tuple[WanPipeline, dict[str, Any]]:
    """The pipeline without text encoder and autoencoder, and what its call is given in place of texts."""
    dtype = torch.float32 if small else torch.bfloat16
    less = {"num_attention_heads": 2, "ffn_dim": 64, "num_layers": 2} if small else {"num_attention_heads": 12,
            "ffn_dim": 8960, "num_layers": 30}  # fmt: skip
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(text_dim=TEXT_DIM, **less).to(dtype).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    texts = (torch.randn(1, TEXT, TEXT_DIM, generator=generator).to(device, dtype) for _ in range(2))
    return pipeline, dict(zip(("prompt_embeds", "negative_prompt_embeds"), texts, strict=True))


def generate(
    pipeline: WanPipeline, inputs: dict[str, Any], size: dict[str, Any], steps: int
) -> tuple[float, torch.Tensor]:
    """Seconds of one run, and its latents, float32."""
    device = pipeline.transformer.device
    start = now(device)
    result = pipeline(
        **inputs, **size, num_inference_steps=steps, guidance_scale=5.0, output_type="latent",
        generator=torch.Generator("cpu").manual_seed(1),
    )  # fmt: skip
    return now(device) - start, result.frames.float()
