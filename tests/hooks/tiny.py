"""A tiny random model of every family, what it is called with, and where its tokens are."""

from dataclasses import dataclass

import diffusers
import torch

from timeripple.attention.grid import TokenGrid

STEPS = 4
FRAMES, HEIGHT, WIDTH, CHANNELS, TEXT, TEXT_DIM = 3, 8, 12, 4, 5, 16
BCFHW, BFCHW = (CHANNELS, FRAMES, HEIGHT, WIDTH), (FRAMES, CHANNELS, HEIGHT, WIDTH)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Tiny:
    """A family: settings of its class, its latents, the arguments beside them, and where its tokens are.

    arguments(batch, text): text [batch, TEXT, TEXT_DIM] in the places the model reads it from. grid: with one sample
    or with two, whose second text is shorter; patch: (t, y, x); sees_text: whether self-attention sees text.
    """

    settings: dict
    arguments: callable
    layers: list
    grid: TokenGrid
    latents: tuple = BCFHW
    patch: tuple = (1, 2, 2)
    rope: tuple | None = None

    @property
    def sees_text(self):
        return self.grid.tokens > self.grid.video_tokens

    def inputs(self, name="cond", step=0, batch=1):
        """Latents that change slowly from step to step, and the text of the pass."""
        latents = randn(0, 1, *self.latents) + 0.1 * step * randn(1, 1, *self.latents)
        latents = torch.cat([latents, randn(2, 1, *self.latents)])[:batch]
        text = randn(len(name), 2, TEXT, TEXT_DIM)[:batch]
        timestep = torch.full((batch,), 1000.0 - 100 * step)
        return {"hidden_states": latents, "timestep": timestep, "return_dict": False} | self.arguments(batch, text)


def text_mask(batch):
    """All of the first sample's text, three tokens of the second's."""
    return torch.tensor([[1] * TEXT, [1, 1, 1] + [0] * (TEXT - 3)])[:batch]


def only_text(batch, text):
    return {"encoder_hidden_states": text}


def hunyuan_arguments(batch, text):
    return {
        "encoder_hidden_states": text,
        "encoder_attention_mask": text_mask(batch),
        "pooled_projections": randn(9, 2, 8)[:batch],
        "guidance": torch.full((batch,), 6000.0),
    }


def framepack_arguments(batch, text):
    return hunyuan_arguments(batch, text) | {
        "image_embeds": randn(8, 2, 2, 8)[:batch],
        "indices_latents": torch.arange(3, 3 + FRAMES),
        "latents_clean": randn(7, 2, CHANNELS, 1, HEIGHT, WIDTH)[:batch],
        "indices_latents_clean": torch.zeros(1),
        "latents_history_2x": randn(6, 2, CHANNELS, 2, HEIGHT, WIDTH)[:batch],
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": randn(5, 2, CHANNELS, 4, HEIGHT, WIDTH)[:batch],
        "indices_latents_history_4x": torch.arange(4),
    }


def hunyuan15_arguments(batch, text):
    return {
        "encoder_hidden_states": text,
        "encoder_attention_mask": text_mask(batch),
        "encoder_hidden_states_2": randn(7, 2, 3, 8)[:batch],
        "encoder_attention_mask_2": torch.ones(batch, 3),
        "image_embeds": torch.zeros(batch, 2, 8),
    }


HEADS = {"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": CHANNELS, "out_channels": CHANNELS}


WAN = HEADS | {"text_dim": TEXT_DIM, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}


HUNYUAN = HEADS | {
    "text_embed_dim": TEXT_DIM,
    "pooled_projection_dim": 8,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "rope_axes_dim": (4, 10, 10),
}


VIDEO = (FRAMES, HEIGHT // 2, WIDTH // 2)


TWO_BLOCKS = ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]


HUNYUAN_LAYERS = ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]


PACKED = WIDTH // 2 * HEIGHT // 2  # tokens of a frame, of which history keeps 1, 1/8 and 1/64


WAN_TINY = Tiny(WAN, only_text, ["blocks.0.attn1", "blocks.1.attn1"], TokenGrid(*VIDEO), rope=(8, 8, 8))


TINY = {
    "WanTransformer3DModel": WAN_TINY,
    "SkyReelsV2Transformer3DModel": WAN_TINY,
    "HunyuanVideoTransformer3DModel": Tiny(
        HUNYUAN, hunyuan_arguments, HUNYUAN_LAYERS, TokenGrid(*VIDEO, text_after=TEXT), rope=(4, 10, 10)
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        HEADS | {"text_embed_dim": TEXT_DIM, "text_embed_2_dim": 8, "image_embed_dim": 8, "num_layers": 2,
                 "num_refiner_layers": 1, "rope_axes_dim": (4, 10, 10), "patch_size": 1},
        hunyuan15_arguments, ["transformer_blocks.0.attn", "transformer_blocks.1.attn"],
        TokenGrid(FRAMES, HEIGHT, WIDTH, text_after=TEXT + 3 + 2), patch=(1, 1, 1), rope=(4, 10, 10),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        HUNYUAN | {"has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        framepack_arguments, HUNYUAN_LAYERS, TokenGrid(*VIDEO, text_before=24 + 6 + 2, text_after=TEXT + 2),
        rope=(4, 10, 10),
    ),
    "CogVideoXTransformer3DModel": Tiny(
        HEADS | {"text_embed_dim": TEXT_DIM, "num_layers": 2, "sample_width": WIDTH, "sample_height": HEIGHT,
                 "sample_frames": 9, "max_text_seq_length": TEXT, "time_embed_dim": 8},
        only_text, TWO_BLOCKS, TokenGrid(*VIDEO, text_before=TEXT), BFCHW,
    ),
    "LTXVideoTransformer3DModel": Tiny(
        HEADS | {"caption_channels": TEXT_DIM, "cross_attention_dim": 48, "num_layers": 2},
        lambda batch, text: {
            "encoder_hidden_states": text, "encoder_attention_mask": text_mask(batch),
            "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH,
        },
        TWO_BLOCKS, TokenGrid(FRAMES, HEIGHT, WIDTH), (FRAMES * HEIGHT * WIDTH, CHANNELS), patch=(1, 1, 1),
    ),
    "MochiTransformer3DModel": Tiny(
        HEADS | {"text_embed_dim": TEXT_DIM, "pooled_projection_dim": 16, "num_layers": 2, "time_embed_dim": 8},
        lambda batch, text: {"encoder_hidden_states": text, "encoder_attention_mask": text_mask(batch).bool()},
        TWO_BLOCKS, TokenGrid(*VIDEO, text_after=TEXT),
    ),
    "AllegroTransformer3DModel": Tiny(
        HEADS | {"caption_channels": TEXT_DIM, "cross_attention_dim": 48, "num_layers": 2},
        only_text, TWO_BLOCKS, TokenGrid(*VIDEO),
    ),
    "CosmosTransformer3DModel": Tiny(  # not among the records: the generic one serves it
        HEADS | {"text_embed_dim": TEXT_DIM, "adaln_lora_dim": 8, "num_layers": 2, "max_size": (8, 16, 16),
                 "concat_padding_mask": False, "extra_pos_embed_type": None},
        only_text, TWO_BLOCKS, TokenGrid(*VIDEO),
    ),
}  # fmt: skip


def make(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**TINY[name].settings).eval().requires_grad_(False)
        for parameter in model.parameters():  # some start at zero and would hide everything behind them
            if not parameter.any():
                parameter.normal_(std=0.1)
        return model


@torch.no_grad()
def denoise(model, passes=("cond", "uncond"), batch=1, steps=STEPS):
    """One run as pipelines make it; the outputs [steps, passes, ...]."""
    tiny, outputs = TINY[type(model).__name__], []
    enabled = getattr(model, "_diffusers_hook", None)
    for step in range(steps):
        for name in passes:
            if hasattr(model, "cache_context"):
                with model.cache_context(name):
                    outputs.append(model(**tiny.inputs(name, step, batch))[0])
            else:
                outputs.append(model(**tiny.inputs(name, step, batch))[0])
    if enabled:
        enabled.reset_stateful_hooks()
    return torch.stack(outputs).unflatten(0, (steps, len(passes)))


def hooked(model):
    return [n for n, m in model.named_modules() if hasattr(m, "_diffusers_hook") or "forward" in vars(m)]
