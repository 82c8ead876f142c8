"""The shipped model, as a user gets it."""

from pathlib import Path

import pytest
import torch

from timeripple.clips.models import load_pipeline
from timeripple.pond.autoencoder import reconstruction_psnr
from timeripple.pond.clips import held_out_clips, held_out_descriptions
from timeripple.pond.judge import judge
from timeripple.pond.prompts import describe

FOLDER = Path(__file__).parents[2] / "assets" / "pond"


@pytest.fixture(scope="module")
def pond():
    return load_pipeline("pond")


def test_size_and_card():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) < 40e6
    card = (FOLDER / "README.md").read_text()
    for part in ("Apache-2.0", "Data", "Recipe", "Evaluation"):
        assert part in card


def test_self_attention_dominates_at_4096_tokens(pond):
    """Multiply-adds of one layer per token: scores and values 2·N·C, projections of both attentions 6·C², MLP 2·C·F."""
    config, tokens = pond.transformer.config, 4096
    channels = config.num_attention_heads * config.attention_head_dim
    attention = 2 * tokens * channels
    assert attention / (attention + 6 * channels**2 + 2 * channels * config.ffn_dim) >= 0.7


def test_the_autoencoder_keeps_held_out_clips(pond):
    clips = [clip for _, clip in held_out_clips(8, 2, 128)]
    assert reconstruction_psnr(pond.vae, clips) >= 32


def test_colour_and_background_follow_the_prompt(pond):
    """A few held-out prompts at 512 tokens; the full evaluation is `python -m timeripple.pond.evaluate`."""
    right, known = 0, pond.prompt_encoder.config.num_concepts
    for seed, (asked, _) in enumerate(held_out_descriptions(4, known)):
        generator = torch.Generator().manual_seed(seed)
        frames = pond(describe(asked), None, 8, 64, 64, 8, generator=generator).frames[0]
        seen = judge((frames * 255).round().astype("uint8"))
        right += (seen.colour == asked.colour) + (seen.background == asked.background)
    assert right >= 6
