"""Fixtures for all tests: a pipeline like Pond's with tiny random weights."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports a kernel
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from timeripple.pond.autoencoder import build_autoencoder
from timeripple.pond.model import LATENT_CHANNELS, PROMPT_DIM, PondPromptEncoder
from timeripple.pond.pipeline import PondPipeline

torch.set_num_threads(1)  # the tensors are small: more threads wait for each other longer than they work


@pytest.fixture(scope="session")
def tiny_pipeline() -> PondPipeline:
    """Two layers, two heads of 24, random weights from seed 0; shared, so leave it as you find it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=LATENT_CHANNELS + 3,
            out_channels=LATENT_CHANNELS,
            text_dim=PROMPT_DIM,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            cross_attn_norm=True,
            rope_max_seq_len=64,
        )
        pipeline = PondPipeline(
            prompt_encoder=PondPromptEncoder(),
            transformer=transformer,
            vae=build_autoencoder(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    for part in (pipeline.prompt_encoder, pipeline.transformer, pipeline.vae):
        part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
