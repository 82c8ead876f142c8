"""The two trained parts of Pond beside its autoencoder: prompt encoder and denoiser."""

import torch
from diffusers import ConfigMixin, ModelMixin, WanTransformer3DModel
from diffusers.configuration_utils import register_to_config

from timeripple.pond.autoencoder import LATENT_CHANNELS
from timeripple.pond.prompts import NUM_CONCEPTS, Description, concept_ids

PROMPT_DIM = 128


class PondPromptEncoder(ModelMixin, ConfigMixin):
    """One learned vector per concept, one token per slot of the grammar."""

    @register_to_config
    def __init__(self, num_concepts: int = NUM_CONCEPTS, dim: int = PROMPT_DIM):
        super().__init__()
        self.embedding = torch.nn.Embedding(num_concepts, dim)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Concept ids, int64 [B, slots], to prompt embeddings [B, slots, dim]."""
        return self.embedding(ids)

    def encode(self, descriptions: list[Description]) -> torch.Tensor:
        """Parsed prompts to prompt embeddings [B, slots, dim]."""
        return self(torch.tensor([concept_ids(description) for description in descriptions], device=self.device))


def with_coordinates(latents: torch.Tensor) -> torch.Tensor:
    """What the denoiser sees: latents [B, 16, f, h, w] and where each is, t, y, x from -1 to 1, [B, 19, f, h, w].

    RoPE is relative; without this, a small model learns only slowly that a subject starts on the right or a horizon
    lies in the middle, and learns it anew at every size.
    """
    axes = [(2 * torch.arange(n, device=latents.device) + 1) / n - 1 for n in latents.shape[2:]]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(latents.dtype)
    return torch.cat([latents, coordinates.expand(len(latents), -1, -1, -1, -1)], dim=1)


def build_transformer() -> WanTransformer3DModel:
    """The untrained denoiser: Wan's architecture with 8 layers of 4 heads of 64 and patch size 1."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS + 3,
        out_channels=LATENT_CHANNELS,
        text_dim=PROMPT_DIM,
        freq_dim=128,
        ffn_dim=1024,
        num_layers=8,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


def fastest_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it, float32 elsewhere."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if native else torch.float32
