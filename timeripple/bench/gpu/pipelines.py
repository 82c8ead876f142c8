"""Pipelines of the real classes with tiny random weights: reuse with offloading, compilation and half precision."""

from __future__ import annotations

import time
import warnings
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from timeripple import ReuseConfig, disable, enable, summary
from timeripple.bench.gpu.findings import Findings, reason

Build = tuple[DiffusionPipeline, dict[str, Any]]  # a pipeline, and what its call is given beside the size
STEPS = 6
TEXT, TEXT_DIM = 16, 32
SIZE = {"height": 128, "width": 192, "num_inference_steps": STEPS, "output_type": "latent"}
SMALL_SIZE = SIZE | {"height": 64, "width": 96}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2}
CONFIGS = {"token": ReuseConfig("token", budget=0.5), "tile": ReuseConfig("tile", budget=0.3)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ALIKE = 0.5  # relative difference of reuse from dense
SAME = 0.5  # of that: the relative difference of what should be the same run, far from what it is without reuse


def run(findings: Findings, device: str, small: bool) -> None:
    """Rows: pipeline, how, method, dtype, passed, relative_error (to dense), difference (to reuse without offloading
    or compilation), saving, seconds, failure."""
    warnings.filterwarnings("error", message="Triton kernels do not run")
    torch.set_grad_enabled(False)
    names, dtypes, size = (["wan"], ["fp32"], SMALL_SIZE) if small else (BUILDERS, DTYPES, SIZE)
    for name in names:
        for dtype in dtypes:
            for method in ["token"] if small else CONFIGS:
                expected = None
                for how in WAYS if dtype == "fp32" and not small else ["eager"]:
                    if findings.left < 10:
                        findings.note(f"{name}, {how}, {method}, {dtype} was left out: no time was left")
                        continue
                    row = {"pipeline": name, "how": how, "method": method, "dtype": dtype, "passed": False}
                    started = time.monotonic()
                    try:
                        found, reused = _check(BUILDERS[name](), how, CONFIGS[method], dtype, device, size, expected)
                        expected = reused if how == "eager" else expected
                        row |= found | {"passed": True, "failure": None}
                    except Exception as error:
                        row |= {"failure": reason(error)}
                    findings.add(row | {"seconds": round(time.monotonic() - started, 2)})


def _check(
    build: Build,
    how: str,
    config: ReuseConfig,
    dtype: str,
    device: str,
    size: dict[str, Any],
    expected: Tensor | None,
) -> tuple[dict[str, Any], Tensor]:
    """What one way of running a pipeline gives; raises AssertionError, one clause, for what is wrong."""
    pipeline, inputs = build
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.to(DTYPES[dtype])
    inputs = {name: _to(value, device, DTYPES[dtype]) for name, value in inputs.items()}

    def generate() -> Tensor:
        result = pipeline(**inputs, **size, generator=torch.Generator("cpu").manual_seed(0)).frames
        assert result.isfinite().all(), "the output is not finite"
        return result.double().cpu()

    before, between, after = WAYS[how]
    before(pipeline, device)
    dense = generate()
    between(pipeline, device)
    enable(pipeline, config)
    after(pipeline, device)
    reused = generate()
    saving = summary(pipeline)["saving"]["reuse_steps"]
    error = _difference(reused, dense)
    difference = None if expected is None else _difference(reused, expected)
    assert saving > 0, "nothing was saved"
    assert 0 < error < ALIKE, f"reuse differs from dense by {error:.3g}"
    for what, other in (("eager reuse", difference or 0.0), ("its first run", _difference(generate(), reused))):
        assert other < SAME * error, f"differs from {what} by {other:.3g}, from dense by {error:.3g}"
    disable(pipeline)
    left = _difference(generate(), dense)
    assert left < SAME * error, f"after disable the output differs from dense by {left:.3g}"
    return {"relative_error": error, "difference": difference, "saving": saving}, reused


def _difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _to(value: Any, device: str, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


# --- ways to run -----------------------------------------------------------------------------------------------------


def _place(pipeline: DiffusionPipeline, device: str) -> None:
    pipeline.to(device)


def _offload(pipeline: DiffusionPipeline, device: str) -> None:
    pipeline.enable_model_cpu_offload(device=device)


def _offload_groups(pipeline: DiffusionPipeline, device: str) -> None:
    pipeline.vae.to(device)
    pipeline.transformer.enable_group_offload(
        onload_device=torch.device(device), offload_device=torch.device("cpu"), offload_type="leaf_level",
        use_stream=True,
    )  # fmt: skip


def _take_back(pipeline: DiffusionPipeline, device: str) -> None:
    pipeline.to("cpu")


def _compile(pipeline: DiffusionPipeline, device: str) -> None:
    pipeline.transformer.compile()


def _compile_blocks(pipeline: DiffusionPipeline, device: str) -> None:
    pipeline.transformer.compile_repeated_blocks(fullgraph=False)


def _nothing(pipeline: DiffusionPipeline, device: str) -> None:
    pass


WAYS = {  # what is done before the dense run, after it, and once reuse is enabled
    "eager": (_place, _nothing, _nothing),
    "model offload, then enable": (_offload, _nothing, _nothing),
    "enable, then model offload": (_place, _take_back, _offload),
    "group offload, then enable": (_offload_groups, _nothing, _nothing),
    "enable, then blocks compiled": (_place, _nothing, _compile_blocks),
    "compiled, then enable": (_place, _compile, _nothing),
}


# --- tiny pipelines --------------------------------------------------------------------------------------------------


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _texts(**more: Any) -> dict[str, Any]:
    texts = {"prompt_embeds": _randn(1, 1, TEXT, TEXT_DIM), "negative_prompt_embeds": _randn(2, 1, TEXT, TEXT_DIM)}
    return texts | more


def _model(name: str, **settings: Any) -> nn.Module:
    """With random weights from seed 0: none is zero, which would hide what is before it, and attention weighs much."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**settings).eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        for part, module in model.named_modules():
            if part.endswith("to_v"):
                module.weight *= 8
    return model


def wan() -> Build:
    transformer = _model(
        "WanTransformer3DModel", **HEADS, in_channels=4, out_channels=4, text_dim=TEXT_DIM, freq_dim=32, ffn_dim=64,
        rope_max_seq_len=64,
    )  # fmt: skip
    vae = _model(
        "AutoencoderKLWan", base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipeline = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer
    )
    return pipeline, _texts(num_frames=17)


def hunyuan_video() -> Build:
    transformer = _model(
        "HunyuanVideoTransformer3DModel", **HEADS | {"num_layers": 1}, num_single_layers=1, num_refiner_layers=1,
        in_channels=4, out_channels=4, text_embed_dim=TEXT_DIM, pooled_projection_dim=8, rope_axes_dim=(16, 24, 24),
    )  # fmt: skip
    vae = _model(
        "AutoencoderKLHunyuanVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip
    pipeline = diffusers.HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, transformer=transformer, vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    mask = torch.ones(1, TEXT, dtype=torch.int64)
    mask[:, -5:] = 0
    inputs = _texts(num_frames=17, pooled_prompt_embeds=_randn(3, 1, 8), prompt_attention_mask=mask)
    return pipeline, {name: value for name, value in inputs.items() if not name.startswith("negative")}


def cogvideox() -> Build:
    transformer = _model(
        "CogVideoXTransformer3DModel", **HEADS, in_channels=4, out_channels=4, text_embed_dim=TEXT_DIM,
        sample_width=24, sample_height=16, sample_frames=17, max_text_seq_length=TEXT, time_embed_dim=16,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = _model(
        "AutoencoderKLCogVideoX", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler()
    pipeline = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )
    return pipeline, _texts(num_frames=17)


def ltx() -> Build:
    transformer = _model(
        "LTXVideoTransformer3DModel", **HEADS, in_channels=4, out_channels=4, caption_channels=TEXT_DIM,
        cross_attention_dim=128,
    )  # fmt: skip
    vae = _model(
        "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
    )  # fmt: skip
    pipeline = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None,
        transformer=transformer,
    )  # fmt: skip
    mask = torch.ones(1, TEXT, dtype=torch.int64)
    return pipeline, _texts(
        num_frames=41, prompt_attention_mask=mask, negative_prompt_attention_mask=mask, guidance_scale=3.0
    )


BUILDERS = {"wan": wan, "hunyuan-video": hunyuan_video, "cogvideox": cogvideox, "ltx": ltx}
