"""Fixtures for all tests: pipelines with tiny random weights, like Pond's and Wan's, and what others begin with."""

import gc
import os
from pathlib import Path

# Before torch, here and in every process that a test starts: the tensors are small, and more threads wait for each
# other longer than they work, above all where another test runs beside.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest
import torch
import transformers

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports a kernel
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from timeripple.pond.model import PROMPT_DIM, PondPromptEncoder
from timeripple.pond.pipeline import PondPipeline

torch.set_num_threads(1)  # whatever was set before
LONGEST = (
    "test_kernels", "test_browser", "test_compile", "test_source_pages", "test_matrix", "test_timing_page",
    "test_links_page", "test_support", "test_accessibility", "test_pipelines", "test_triton_backend",
    "test_player_page", "test_gpu", "test_restart", "test_container", "test_sweep", "test_guidance", "test_hostile",
)  # fmt: skip
"""Files whose tests take longest, as a file is one worker's: they begin first, so that all workers end together."""


def pytest_collection_modifyitems(items):
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    gc.freeze()  # what is imported stays, and need not be searched for garbage again and again


@pytest.fixture(scope="session")
def tiny_pipeline() -> PondPipeline:
    """Two layers, two heads of 24, random weights from seed 0; shared, so leave it as you find it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=8 + 3,
            out_channels=8,
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
            vae=AutoencoderKLLTXVideo(
                latent_channels=8,
                patch_size=2,
                spatio_temporal_scaling=(True, True),
                block_out_channels=(4, 8, 8),
                down_block_types=("LTXVideo095DownBlock3D",) * 2,
                downsample_type=("spatiotemporal", "conv"),
                layers_per_block=(0, 0, 0),
                decoder_block_out_channels=(12, 24),
                decoder_layers_per_block=(0, 0, 1),
                decoder_spatio_temporal_scaling=(True, True),
                decoder_inject_noise=(False,) * 3,
                upsample_factor=(3, 2),
                upsample_residual=(False, False),
                decoder_causal=True,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    for part in (pipeline.prompt_encoder, pipeline.transformer, pipeline.vae):
        part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory) -> Path:
    """The folder of a Wan pipeline with tiny random weights: real tokenizer, text encoder, autoencoder and denoiser."""
    words = [f"▁{word}" for word in ["a", "red", "ball", "cat", "walks", "on", "the", "grass"]]
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -1.0) for piece in words] + [(piece, -3.0) for piece in ("▁", *letters)]
    text = transformers.UMT5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = WanPipeline(
            tokenizer=transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0),
            text_encoder=transformers.UMT5EncoderModel(text).eval(),
            transformer=WanTransformer3DModel(
                num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
                ffn_dim=32, num_layers=2, rope_max_seq_len=32,
            ).eval(),
            vae=AutoencoderKLWan(
                base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ).eval(),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny-wan")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, str]:
    """Paths of a picture and a video, see `example_files`."""
    from timeripple.bench.tiny import example_files

    return example_files(tmp_path_factory.mktemp("inputs"))
