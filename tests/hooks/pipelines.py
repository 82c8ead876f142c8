"""Pipelines of the real classes with tiny random weights, and what they are called with."""

import diffusers
import torch

TEXT, DIM, STEPS = 6, 16, 4
SIZE = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": STEPS, "output_type": "latent"}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4}
WAN = HEADS | {"text_dim": DIM, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(name, **settings):
    """Random weights from seed 0: none is zero, which would hide what is before it, and attention weighs much."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(diffusers, name)(**settings).eval().requires_grad_(False)
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        for part, module in made.named_modules():
            if part.endswith("to_v"):
                module.weight *= 8
        return made


def texts(**more):
    return {"prompt_embeds": randn(1, 1, TEXT, DIM), "negative_prompt_embeds": randn(2, 1, TEXT, DIM)} | more


def wan_vae():
    """It gives the same latents as before for the same pictures, without looking at them again."""
    vae = model(
        "AutoencoderKLWan", base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    encode, seen = vae.encode, []

    def encode_once(pictures):
        for earlier, latents in seen:
            if torch.equal(earlier, pictures):
                return latents
        seen.append((pictures.clone(), encode(pictures)))
        return seen[-1][1]

    vae.encode = encode_once
    return vae


def hunyuan_vae():
    return model(
        "AutoencoderKLHunyuanVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip


def wan():
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=None,
        transformer=model("WanTransformer3DModel", **WAN),
    )  # fmt: skip
    return pipe, texts()


def wan_two_experts():
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=None, boundary_ratio=0.6,
        transformer=model("WanTransformer3DModel", **WAN), transformer_2=model("WanTransformer3DModel", **WAN),
    )  # fmt: skip
    return pipe, texts()


def wan_image_to_video():
    transformer = model("WanTransformer3DModel", **WAN | {"in_channels": 12})
    pipe = diffusers.WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=None, image_encoder=None, image_processor=None,
        transformer=transformer,
    )  # fmt: skip
    return pipe, texts(image=torch.rand(1, 3, SIZE["height"], SIZE["width"]))


def wan_video_to_video():
    pipe = diffusers.WanVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=None,
        transformer=model("WanTransformer3DModel", **WAN),
    )  # fmt: skip
    return pipe, texts(latents=randn(3, 1, 4, 3, 4, 6), strength=1.0, num_frames=None)


def wan_vace():
    transformer = model("WanVACETransformer3DModel", **WAN, vace_layers=[0], vace_in_channels=72)
    pipe = diffusers.WanVACEPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=None, transformer=transformer
    )
    return pipe, texts()


def skyreels():
    pipe = diffusers.SkyReelsV2Pipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=None,
        transformer=model("SkyReelsV2Transformer3DModel", **WAN),
    )  # fmt: skip
    return pipe, texts()


def skyreels_forcing():
    """Frames denoise one after the other: the clip that is seen grows from row to row."""
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=None,
        transformer=model("SkyReelsV2Transformer3DModel", **WAN),
    )  # fmt: skip
    return pipe, texts(prompt=None, ar_step=2, base_num_frames=9)


HUNYUAN = HEADS | {"text_embed_dim": DIM, "num_layers": 1, "num_refiner_layers": 1, "rope_axes_dim": (4, 10, 10)}


def text_mask():
    mask = torch.ones(1, TEXT, dtype=torch.int64)
    mask[:, -2:] = 0
    return mask


def hunyuan_video():
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, vae=hunyuan_vae(), scheduler=None, text_encoder_2=None, tokenizer_2=None,
        transformer=model("HunyuanVideoTransformer3DModel", **HUNYUAN, num_single_layers=1, pooled_projection_dim=8),
    )  # fmt: skip
    return pipe, {
        "prompt_embeds": randn(1, 1, TEXT, DIM),
        "pooled_prompt_embeds": randn(3, 1, 8),
        "prompt_attention_mask": text_mask(),
    }


def hunyuan_video_15():
    """Its guidance is a component of its own, and it has no callback."""
    transformer = model(
        "HunyuanVideo15Transformer3DModel", **HEADS | {"in_channels": 9}, text_embed_dim=DIM, text_embed_2_dim=8,
        image_embed_dim=8, num_layers=2, num_refiner_layers=1, rope_axes_dim=(4, 10, 10), patch_size=1,
    )  # fmt: skip
    vae = model(
        "AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1,
        spatial_compression_ratio=16, temporal_compression_ratio=4,
    )  # fmt: skip
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=None, tokenizer=None, transformer=transformer, vae=vae, scheduler=None, text_encoder_2=None,
        tokenizer_2=None, guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )  # fmt: skip
    pipe.vision_num_semantic_tokens = 2
    masks = {f"{negative}prompt_embeds_mask": text_mask() for negative in ("", "negative_")}
    masks |= {f"{negative}prompt_embeds_mask_2": torch.ones(1, 3) for negative in ("", "negative_")}
    second = {"prompt_embeds_2": randn(3, 1, 3, 8), "negative_prompt_embeds_2": randn(4, 1, 3, 8)}
    return pipe, texts(**masks, **second, height=64, width=96)


def cogvideox():
    transformer = model(
        "CogVideoXTransformer3DModel", **HEADS | {"attention_head_dim": 16}, text_embed_dim=DIM, num_layers=2,
        sample_width=6, sample_height=4, sample_frames=9, max_text_seq_length=TEXT, time_embed_dim=8,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = model(
        "AutoencoderKLCogVideoX", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=None
    )
    return pipe, texts()


def ltx():
    transformer = model(
        "LTXVideoTransformer3DModel", **HEADS, num_layers=2, caption_channels=DIM, cross_attention_dim=48
    )
    vae = model(
        "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
    )  # fmt: skip
    pipe = diffusers.LTXPipeline(scheduler=None, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer)
    masks = {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask()}
    return pipe, texts(**masks, guidance_scale=3.0, height=128, width=192, num_frames=17)


def mochi():
    transformer = model(
        "MochiTransformer3DModel", **HEADS, text_embed_dim=DIM, pooled_projection_dim=16, num_layers=2,
        time_embed_dim=8, max_sequence_length=TEXT,
    )  # fmt: skip
    pipe = diffusers.MochiPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=transformer)
    masks = {"prompt_attention_mask": text_mask().bool(), "negative_prompt_attention_mask": text_mask().bool()}
    return pipe, texts(**masks, num_frames=13)


def allegro():
    transformer = model(
        "AllegroTransformer3DModel", **HEADS, num_layers=2, caption_channels=DIM, cross_attention_dim=48,
        sample_width=6, sample_height=4, sample_frames=3,
    )  # fmt: skip
    pipe = diffusers.AllegroPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=None
    )
    mask = torch.ones(1, TEXT, dtype=torch.int64)
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, texts(**masks, negative_prompt=None)


PIPELINES = {
    made.__name__: made
    for made in (
        wan, wan_two_experts, wan_image_to_video, wan_video_to_video, wan_vace, skyreels, skyreels_forcing,
        hunyuan_video, hunyuan_video_15, cogvideox, ltx, mochi, allegro,
    )
}  # fmt: skip

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_SCHEDULERS = {
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="dpmsolver++"),
}
NOISE_SCHEDULERS = {
    "unipc": diffusers.UniPCMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
}
SCHEDULERS = tuple(FLOW_SCHEDULERS)


def can_build(name, scheduler):
    """Whether diffusers itself takes them together."""
    if name in ("hunyuan_video", "hunyuan_video_15", "ltx", "mochi"):  # these give sigmas of their own
        return scheduler not in ("heun", "dpm++")
    return name != "skyreels_forcing" or scheduler not in ("euler", "heun")  # it gives timesteps as whole numbers


COMBINATIONS = [(name, scheduler) for name in PIPELINES for scheduler in SCHEDULERS if can_build(name, scheduler)]


def build(name, scheduler):
    """The pipeline and its inputs."""
    pipe, inputs = PIPELINES[name]()
    kinds = NOISE_SCHEDULERS if name in ("cogvideox", "allegro") else FLOW_SCHEDULERS
    pipe.register_modules(scheduler=kinds[scheduler]())
    pipe.set_progress_bar_config(disable=True)
    return pipe, inputs


def transformers(pipe):
    return [part for name, part in pipe.components.items() if name.startswith("transformer") and part is not None]


def in_precision(pipe, inputs, dtype):
    """The denoiser and what it is given beside the latents in this dtype; the inputs."""
    for transformer in transformers(pipe):
        transformer.to(dtype)
    floats = {name: x for name, x in inputs.items() if name.endswith(("_embeds", "_embeds_2"))}
    return inputs | {name: x.to(dtype) for name, x in floats.items()}


def generate(pipe, inputs, seed=0, **more):
    """The latents of one run."""
    arguments = SIZE | inputs | more
    if arguments["num_frames"] is None:  # told by the latents
        del arguments["num_frames"]
    return pipe(**arguments, generator=torch.Generator().manual_seed(seed)).frames
