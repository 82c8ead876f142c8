"""Pond's autoencoder: a causal video autoencoder, 4×8×8 to one, 16 latent channels.

`AutoencoderKLLTXVideo` in a small configuration. Its changes of resolution move pixels to channels and back, so that
a convolution can treat each place of a patch in its own way, and principal components of patches are exactly within
its reach (`components.py`): training begins where they are. Wan's own `AutoencoderKLWan`, whose decoder repeats pixels
and blurs, had to learn even that: after six minutes on an H200 it gave held-out clips back at 25.5 dB, where 16
components give 32.5. A latent frame is decoded from itself and a few before it, and nothing is averaged over time or
space: colours do not drift, whatever the length and size. `train_autoencoder.py` trains it.
"""

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

LATENT_CHANNELS = 16
HIDDEN = 192  # channels of the decoder's middle, where a latent cell is a place
SPATIAL_FACTOR, TEMPORAL_FACTOR = 8, 4


def build_autoencoder() -> AutoencoderKLLTXVideo:
    """The untrained autoencoder: RGB in [-1, 1] [B, 3, 4n + 1, H, W] to latents [B, 16, n + 1, H/8, W/8].

    The encoder is linear: what is alike in pixels is alike in latents, and a denoiser has it easy. All depth is in the
    decoder's middle, at the latents' resolution.
    """
    return AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        patch_size=2,
        spatio_temporal_scaling=(True, True),
        block_out_channels=(16, 128, 128),
        down_block_types=("LTXVideo095DownBlock3D",) * 2,
        downsample_type=("spatiotemporal", "conv"),
        layers_per_block=(0, 0, 0),
        decoder_block_out_channels=(HIDDEN // 2, HIDDEN),
        decoder_layers_per_block=(0, 0, 4),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        upsample_factor=(3, 2),  # 192 channels to 96 to 32
        upsample_residual=(False, False),
        decoder_causal=True,
    )


def encode(vae: AutoencoderKLLTXVideo, video: Tensor) -> Tensor:
    """Frames in [-1, 1], [B, 3, F, H, W], to latents [B, 16, (F - 1) / 4 + 1, H/8, W/8] of about unit variance."""
    mean, std = _statistics(vae, video)
    return (vae.encode(video).latent_dist.mode() - mean) / std


def decode(vae: AutoencoderKLLTXVideo, latents: Tensor) -> Tensor:
    """Latents [B, 16, f, h, w] to frames of about [-1, 1], [B, 3, 4f - 3, 8h, 8w]."""
    mean, std = _statistics(vae, latents)
    return vae.decode(latents * std + mean).sample


def _statistics(vae: AutoencoderKLLTXVideo, like: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(x.to(like).view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))


@torch.no_grad()
def set_statistics(vae: AutoencoderKLLTXVideo, video: Tensor) -> None:
    """Note mean of each channel and the standard deviation of all together over frames in [-1, 1], [B, 3, F, H, W].

    One scale for all, so that a channel that shows more in pixels stays louder: noise drowns it last, and the denoiser
    decides it first.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in video.split(8)])
    vae.latents_mean.copy_(latents.mean((0, 2, 3, 4)))
    vae.latents_std.fill_(latents.var((0, 2, 3, 4)).mean().sqrt())


def to_unit(video: Tensor) -> Tensor:
    """uint8 to float in [-1, 1], any shape."""
    return video.float() / 127.5 - 1


def to_video(frames: np.ndarray) -> Tensor:
    """uint8 RGB [F, H, W, 3] to float [-1, 1] [1, 3, F, H, W]."""
    return to_unit(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLLTXVideo, clips: list[np.ndarray]) -> float:
    """PSNR in dB over all pixels of clips, uint8 RGB [F, H, W, 3], after encoding and decoding."""
    errors = []
    for clip in clips:
        video = to_video(clip).to(vae.device)
        decoded = decode(vae, encode(vae, video.to(vae.dtype))).float().clamp(-1, 1)
        errors.append(((decoded - video) / 2).pow(2).mean().item())
    return -10 * float(np.log10(np.mean(errors)))
