"""Pipelines of the real classes of diffusers with tiny random weights: everything but the text encoders is theirs.

Texts become random numbers that depend on the text alone, as many tokens as it has words; pictures likewise.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from timeripple.clips.generate import Request
from timeripple.clips.video import write_mp4

TEXT, TEXT_DIM, POOLED = 16, 32, 16
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2}
LATENTS = {"in_channels": 4, "out_channels": 4}
STEPS = 6
SMALL = {"num_frames": 9, "height": 64, "width": 96}
SIZES = {  # what some can make, and of many frames small ones
    "AllegroPipeline": {"num_frames": 24, "height": 160, "width": 160},
    "HunyuanVideoFramepackPipeline": {"height": 32},
    "LTXI2VLongMultiPromptPipeline": {"height": 128, "width": 128},
}
PROMPT, NEGATIVE = "a cat walks on the grass", "blurred and dark"  # of different lengths


def tiny(name: str) -> Any:
    """The pipeline of this class, with weights from seed 0. Raises KeyError for classes that are not in `PIPELINES`."""
    pipeline: DiffusionPipeline = PIPELINES[name](getattr(diffusers, name))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def example_files(folder: Path) -> dict[str, str]:
    """Writes a picture of 96x64 and a video of 9 frames to begin with: their paths, by "image" and "video"."""
    t, y, x = np.mgrid[:9, :64, :96] / np.array([9, 64, 96]).reshape(3, 1, 1, 1)
    clip = (255 * np.stack([x, y, (t + x) / 2], axis=-1)).astype(np.uint8)
    files = {"image": folder / "picture.png", "video": folder / "video.mp4"}
    Image.fromarray(clip[0]).save(files["image"])
    write_mp4(files["video"], clip)
    return {name: str(path) for name, path in files.items()}


def inputs_for(name: str, files: dict[str, str]) -> dict[str, str]:
    """Those of `example_files` that the pipeline of this class begins with."""
    wanted = {"image": ("ImageToVideo", "Framepack"), "video": ("VideoToVideo", "FunControl")}
    return {what: files[what] for what, kinds in wanted.items() if any(kind in name for kind in kinds)}


def small_request(pipeline: DiffusionPipeline, files: dict[str, str], prompt: str = PROMPT, **given: Any) -> Request:
    """A small clip of it; how it is rounded is not spoken of."""
    name = type(pipeline).__name__
    size = SMALL | SIZES.get(name, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"seed": 1, "steps": STEPS} | size | inputs_for(name, files) | given
        return Request.for_pipeline(pipeline, prompt, **settings)


# --- Components -------------------------------------------------------------------------------------------------------


def model(name: str, **settings: Any) -> Any:
    """With random weights, of which none is zero, as that would hide what comes before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(diffusers, name)(**settings).eval().requires_grad_(False)
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return made


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wan_model(name: str = "WanTransformer3DModel", **settings: Any) -> Any:
    ours = {"text_dim": TEXT_DIM, "freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 32}
    return model(name, **HEADS | LATENTS | ours | settings)


def wan_vae() -> Any:
    return model(
        "AutoencoderKLWan", base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def hunyuan_model(name: str = "HunyuanVideoTransformer3DModel", **settings: Any) -> Any:
    ours = {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": TEXT_DIM,
            "pooled_projection_dim": POOLED, "rope_axes_dim": (4, 10, 10)}  # fmt: skip
    return model(name, **HEADS | LATENTS | ours | settings)


def hunyuan_vae() -> Any:
    return model(
        "AutoencoderKLHunyuanVideo", latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1,
        norm_num_groups=2, mid_block_add_attention=False,
    )  # fmt: skip


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def euler(shift: float = 1.0) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


# --- Texts and pictures -----------------------------------------------------------------------------------------------


def embedded(text: str | list[str] | None, dim: int = TEXT_DIM) -> tuple[Tensor, Tensor]:
    """[1, TEXT, dim], and 1 for each of its words in [1, TEXT]."""
    text = (text[0] if isinstance(text, list) else text) or ""
    mask = (torch.arange(TEXT) < max(1, len(text.split()))).long()
    return randn(zlib.crc32(text.encode()), 1, TEXT, dim), mask[None]


def pair(prompt: Any, negative_prompt: Any = None, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """As Wan and CogVideoX have it."""
    return embedded(prompt)[0], embedded(negative_prompt)[0]


def masked_pair(prompt: Any, *given: Any, negative_prompt: Any = None, **_: Any) -> tuple[Tensor, ...]:
    """As LTX, Mochi and Allegro have it."""
    texts = [text for text in given if isinstance(text, str | list)]
    return *embedded(prompt), *embedded(negative_prompt or next(iter(texts), ""))


def masked_pair_of_bools(*given: Any, **named: Any) -> tuple[Tensor, ...]:
    """As Mochi has it."""
    first, first_mask, second, second_mask = masked_pair(*given, **named)
    return first, first_mask.bool(), second, second_mask.bool()


def pooled(prompt: Any = None, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As HunyuanVideo has it, which pools too."""
    embeds, mask = embedded(prompt)
    return embeds, embeds.mean(1)[:, :POOLED], mask


def pooled_with_picture(prompt: Any = None, image: Any = None, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return pooled(prompt)


def doubled(prompt: Any = None, **_: Any) -> tuple[Tensor, ...]:
    """As HunyuanVideo 1.5 has it, with two text encoders."""
    return *embedded(prompt), *embedded(prompt, 8)


def seen(tokens: int, dim: int) -> Callable[..., Tensor]:
    """In place of an encoder of pictures."""
    return lambda *_, **__: randn(3, 1, tokens, dim)


def with_encoders(pipeline: Any, text: Callable[..., Any], picture: Callable[..., Tensor] | None = None) -> Any:
    pipeline.encode_prompt = text
    if picture is not None:
        pipeline.encode_image = picture
    return pipeline


# --- Pipelines --------------------------------------------------------------------------------------------------------


def wan(kind: Any, **more: Any) -> Any:
    parts = {"transformer": wan_model(), "vae": wan_vae(), "scheduler": unipc(), "tokenizer": None} | more
    return with_encoders(kind(text_encoder=None, **parts), pair)


def wan_two_experts(kind: Any) -> Any:
    return wan(kind, transformer_2=wan_model(ffn_dim=48), boundary_ratio=0.6)


def wan_i2v(kind: Any) -> Any:
    return wan(kind, transformer=wan_model(in_channels=4 + 4 + 4), image_encoder=None, image_processor=None)


def vace(kind: Any) -> Any:
    context = wan_model("WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=2 * 4 + 64)
    return wan(kind, transformer=context)


def skyreels(kind: Any, **more: Any) -> Any:
    return wan(kind, transformer=wan_model("SkyReelsV2Transformer3DModel", **more))


def skyreels_i2v(kind: Any) -> Any:
    settings = {"in_channels": 4 + 4 + 4, "image_dim": 8, "added_kv_proj_dim": 48}
    parts = {"transformer": wan_model("SkyReelsV2Transformer3DModel", **settings), "image_processor": None}
    return with_encoders(wan(kind, image_encoder=None, **parts), pair, seen(4, 8))


def hunyuan(kind: Any, text: Callable[..., Any] = pooled, **more: Any) -> Any:
    parts = {"transformer": hunyuan_model(), "vae": hunyuan_vae(), "scheduler": euler(7.0)} | more
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return with_encoders(kind(**encoders, **parts), text)


def hunyuan_i2v(kind: Any) -> Any:
    transformer = hunyuan_model(in_channels=2 * 4 + 1, image_condition_type="latent_concat", guidance_embeds=False)
    return hunyuan(kind, pooled_with_picture, transformer=transformer, image_processor=None)


def hunyuan_skyreels(kind: Any) -> Any:
    return hunyuan(kind, transformer=hunyuan_model(in_channels=2 * 4))


def framepack(kind: Any) -> Any:
    settings = {"has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True}
    transformer = hunyuan_model("HunyuanVideoFramepackTransformer3DModel", **settings)
    pipeline = hunyuan(kind, transformer=transformer, image_encoder=None, feature_extractor=None)
    return with_encoders(pipeline, pooled, seen(2, 8))


def hunyuan15(kind: Any, **more: Any) -> Any:
    transformer = model(
        "HunyuanVideo15Transformer3DModel", **HEADS, in_channels=2 * 4 + 1, out_channels=4, text_embed_dim=TEXT_DIM,
        text_embed_2_dim=8, image_embed_dim=8, num_refiner_layers=1, rope_axes_dim=(4, 10, 10), patch_size=1,
        target_size=96,
    )  # fmt: skip
    vae = model("AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
    parts = {"transformer": transformer, "vae": vae, "scheduler": euler(9.0), **more}
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0)
    return with_encoders(kind(**encoders, guider=guider, **parts), doubled, seen(729, 8))


def hunyuan15_i2v(kind: Any) -> Any:
    return hunyuan15(kind, image_encoder=None, feature_extractor=None)


def cogvideox(kind: Any, channels: int = 4) -> Any:
    transformer = model(
        "CogVideoXTransformer3DModel", **HEADS | {"attention_head_dim": 32}, in_channels=channels, out_channels=4,
        text_embed_dim=TEXT_DIM, sample_width=12, sample_height=8, sample_frames=9, max_text_seq_length=TEXT,
        time_embed_dim=8, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = model(
        "AutoencoderKLCogVideoX", latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler()
    parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler, "tokenizer": None}
    return with_encoders(kind(text_encoder=None, **parts), pair)


def cogvideox_with_picture(kind: Any) -> Any:
    return cogvideox(kind, channels=8)


def ltx(kind: Any) -> Any:
    transformer = model(
        "LTXVideoTransformer3DModel", **HEADS | LATENTS, caption_channels=TEXT_DIM, cross_attention_dim=48
    )
    vae = model(
        "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
    )  # fmt: skip
    parts = {"transformer": transformer, "vae": vae, "scheduler": euler(), "tokenizer": None}
    return with_encoders(kind(text_encoder=None, **parts), masked_pair)


def ltx_long(kind: Any) -> Any:
    pipeline = ltx(kind)
    pipeline.scheduler = diffusers.LTXEulerAncestralRFScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def mochi(kind: Any) -> Any:
    transformer = model(
        "MochiTransformer3DModel", **HEADS, in_channels=12, text_embed_dim=TEXT_DIM, pooled_projection_dim=16,
        time_embed_dim=8,
    )  # fmt: skip
    vae = model(
        "AutoencoderKLMochi", encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5, add_attention_block=(False,) * 5,
    )  # fmt: skip
    parts = {"transformer": transformer, "vae": vae, "scheduler": euler(), "tokenizer": None}
    return with_encoders(kind(text_encoder=None, **parts), masked_pair_of_bools)


def allegro(kind: Any) -> Any:
    transformer = model(
        "AllegroTransformer3DModel", **HEADS | LATENTS, caption_channels=TEXT_DIM, cross_attention_dim=48,
        sample_height=20, sample_width=20, sample_frames=6,
    )  # fmt: skip
    vae = model(
        "AutoencoderKLAllegro", block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, sample_size=160
    )
    parts = {"transformer": transformer, "vae": vae, "scheduler": diffusers.EulerAncestralDiscreteScheduler()}
    return with_encoders(kind(text_encoder=None, tokenizer=None, **parts), masked_pair)


PIPELINES: dict[str, Callable[[Any], Any]] = {
    "WanPipeline": wan_two_experts,
    "WanImageToVideoPipeline": wan_i2v,
    "WanVideoToVideoPipeline": wan,
    "WanVACEPipeline": vace,
    "SkyReelsV2Pipeline": skyreels,
    "SkyReelsV2DiffusionForcingPipeline": skyreels,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": skyreels,
    "SkyReelsV2ImageToVideoPipeline": skyreels_i2v,
    "HunyuanVideoPipeline": hunyuan,
    "HunyuanVideoImageToVideoPipeline": hunyuan_i2v,
    "HunyuanSkyreelsImageToVideoPipeline": hunyuan_skyreels,
    "HunyuanVideoFramepackPipeline": framepack,
    "HunyuanVideo15Pipeline": hunyuan15,
    "HunyuanVideo15ImageToVideoPipeline": hunyuan15_i2v,
    "CogVideoXPipeline": cogvideox,
    "CogVideoXImageToVideoPipeline": cogvideox_with_picture,
    "CogVideoXVideoToVideoPipeline": cogvideox,
    "CogVideoXFunControlPipeline": cogvideox_with_picture,
    "LTXPipeline": ltx,
    "LTXImageToVideoPipeline": ltx,
    "LTXConditionPipeline": ltx,
    "LTXI2VLongMultiPromptPipeline": ltx_long,
    "MochiPipeline": mochi,
    "AllegroPipeline": allegro,
}
"""How to build the pipeline of each class."""
