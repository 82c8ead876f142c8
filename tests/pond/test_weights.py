"""The shipped model, as a user gets it."""

from pathlib import Path

import pytest
import torch

from timeripple.clips.models import load_pipeline
from timeripple.pond.autoencoder import encode, to_video
from timeripple.pond.clips import held_out_clips, held_out_descriptions
from timeripple.pond.evaluate import evaluate_autoencoder
from timeripple.pond.judge import judge
from timeripple.pond.prompts import describe

FOLDER = Path(__file__).parents[2] / "assets" / "pond"


@pytest.fixture(scope="module")
def pond():
    return load_pipeline("pond")


def test_size_and_card():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) < 60e6
    assert all(path.stat().st_size <= 12e6 for path in FOLDER.rglob("*"))
    card = (FOLDER / "README.md").read_text()
    for part in ("Apache-2.0", "Data", "Recipe", "Evaluation"):
        assert part in card


def test_self_attention_dominates_at_the_standard_size(pond):
    """Multiply-adds of one layer per token: scores and values 2·N·C, projections of both attentions 6·C², MLP 2·C·F."""
    config, tokens = pond.transformer.config, 9 * 24 * 24
    channels = config.num_attention_heads * config.attention_head_dim
    attention = 2 * tokens * channels
    assert attention / (attention + 6 * channels**2 + 2 * channels * config.ffn_dim) >= 0.7


def test_colour_and_background_follow_the_prompt(pond):
    """A few held-out prompts at 1280 tokens; the full evaluation is `python -m timeripple.pond.evaluate`."""
    right = 0
    for seed, (asked, _) in enumerate(held_out_descriptions(4)):
        generator = torch.Generator().manual_seed(seed)
        frames = pond(describe(asked), None, 17, 128, 128, 8, generator=generator).frames[0]
        seen = judge((frames * 255).round().astype("uint8"))
        right += (seen.colour == asked.colour) + (seen.background == asked.background)
    assert right >= 6


def test_the_autoencoder_keeps_held_out_clips(pond):
    """The first two of the sixteen in `assets/benchmarks/pond-autoencoder.json`, which were 35.05 dB."""
    result = evaluate_autoencoder(pond.vae, 2, 33, 192)
    assert result["vae_psnr"] >= 35.05 - 0.5
    assert result["edge"] <= 1.6 and result["one_piece"] == 1


def test_latents_are_loudest_where_they_show_most(pond):
    clips = [to_video(clip) for _, clip in held_out_clips(24, 5, 64)]
    with torch.no_grad():
        latents = torch.cat([encode(pond.vae, clip) for clip in clips]).transpose(0, 1).flatten(1)
    level = latents.pow(2).mean(1).sqrt()
    assert level[0] == level.max() and level.min() > 0.2
    assert 0.6 < level.pow(2).mean().sqrt() < 1.6
