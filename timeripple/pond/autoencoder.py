"""Pond's autoencoder: Wan's causal video autoencoder in a small configuration, 4×8×8 to one, 16 latent channels.

`AutoencoderKLWan` as Wan 2.2 uses it. Pixels are taken two by two before the first convolution: so its widest layers
run at half the resolution, and 33 frames of 192×192 decode in one to four seconds on two CPU cores, where the same
class without patches takes twice to three times as long. Shortcuts around every change of resolution let it learn
faster. `train.py` trains it.
"""

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, AutoencoderTiny
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify

from timeripple.pond.clips import SIZES, WINDOWS, Newest, held_out_clips, random_windows

LATENT_CHANNELS = 16
SPATIAL_FACTOR, TEMPORAL_FACTOR = 8, 4
LR = 2e-3
APART = 0.2  # of a first run, in which the halves learn apart
SPREAD = 0.05  # of latents around the components, then
BATCH = 12  # on a GPU
KL_WEIGHT = 2e-4
LOG_SECONDS = 15


def build_autoencoder() -> AutoencoderKLWan:
    """The untrained autoencoder: RGB in [-1, 1] [B, 3, 4n + 1, H, W] to latents [B, 16, n + 1, H/8, W/8]."""
    return AutoencoderKLWan(
        base_dim=32,
        decoder_base_dim=48,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_temporal=TEMPORAL_FACTOR,
        scale_factor_spatial=SPATIAL_FACTOR,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def encode(vae: AutoencoderKLWan, video: torch.Tensor, at_once: bool = False) -> torch.Tensor:
    """Frames in [-1, 1], [B, 3, F, H, W], to latents [B, 16, (F - 1) / 4 + 1, H/8, W/8] of about unit variance.

    at_once: all frames at once, faster where there is the memory for it.
    """
    if isinstance(vae, AutoencoderTiny):  # the first edition's: every frame by itself
        frames = video.transpose(1, 2).flatten(0, 1)
        latents = torch.cat([vae.encode(chunk).latents * vae.config.scaling_factor for chunk in frames.split(16)])
        return latents.unflatten(0, (len(video), -1)).transpose(1, 2)
    mean, std = _statistics(vae, video)
    mode = moments_at_once(vae, video).chunk(2, dim=1)[0] if at_once else vae.encode(video).latent_dist.mode()
    return (mode - mean) / std


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, 16, f, h, w] to frames of about [-1, 1], [B, 3, 4f - 3, 8h, 8w]."""
    if isinstance(vae, AutoencoderTiny):
        frames = latents.transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor
        video = torch.cat([vae.decode(chunk).sample for chunk in frames.split(16)])
        return video.unflatten(0, (len(latents), -1)).transpose(1, 2)
    mean, std = _statistics(vae, latents)
    return vae.decode(latents * std + mean).sample


def _statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(x, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def to_unit(video: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [-1, 1], any shape."""
    return video.float() / 127.5 - 1


def to_video(frames: np.ndarray) -> torch.Tensor:
    """uint8 RGB [F, H, W, 3] to float [-1, 1] [1, 3, F, H, W]."""
    return to_unit(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, clips: list[np.ndarray]) -> float:
    """PSNR in dB over all pixels of clips, uint8 RGB [F, H, W, 3], after encoding and decoding."""
    errors = []
    for clip in clips:
        video = to_video(clip).to(vae.device)
        decoded = decode(vae, encode(vae, video.to(vae.dtype))).float().clamp(-1, 1)
        errors.append(((decoded - video) / 2).pow(2).mean().item())
    return -10 * float(np.log10(np.mean(errors)))


def moments_at_once(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """What `vae.encode` makes of a clip, four frames at a time, made of all frames at once: many times faster on a GPU.

    Frames in [-1, 1], [B, 3, 4n + 1, H, W], to mean and log-variance, [B, 32, n + 1, H/8, W/8].
    """
    encoder = vae.encoder
    x = encoder.conv_in(patchify(video, vae.config.patch_size))
    for block in encoder.down_blocks:
        x = _block_at_once(block.resnets, block.downsampler, x) + block.avg_shortcut(x)
    x = encoder.conv_out(F.silu(encoder.norm_out(encoder.mid_block(x))))
    return vae.quant_conv(x)


def frames_at_once(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """What `vae.decode` makes of latents [B, 16, f, h, w], frame by frame, made of all at once, and not clamped."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(z)))
    for block in decoder.up_blocks:
        shortcut = 0 if block.avg_shortcut is None else block.avg_shortcut(x, first_chunk=True)
        x = _block_at_once(block.resnets, block.upsampler, x) + shortcut
    return unpatchify(decoder.conv_out(F.silu(decoder.norm_out(x))), vae.config.patch_size)


def _block_at_once(resnets: torch.nn.ModuleList, layer: WanResample | None, x: torch.Tensor) -> torch.Tensor:
    """Wan's residual blocks and resampling of a whole clip: its first frame takes no part in the steps along time."""
    for resnet in resnets:
        x = resnet(x)
    if layer is None:
        return x
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        first, rest = x[:, :, :1], layer.time_conv(x[:, :, 1:])
        x = torch.cat([first, rest.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)], 2)
    x = layer.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)
    return torch.cat([x[:, :, :1], layer.time_conv(x)], 2) if layer.mode == "downsample3d" and x.shape[2] > 1 else x


@dataclass(frozen=True)
class PatchBasis:
    """The first principal components of 4×8×8 RGB patches, the latents that training begins with.

    mean: [768]; components: [16, 768], unit rows; scale: [16], brings coefficients halfway to unit variance, so that
    what varies most still does.
    """

    mean: torch.Tensor
    components: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def fit(cls, video: torch.Tensor) -> "PatchBasis":
        """Fit to frames in [-1, 1], [B, 3, 4n + 1, H, W]."""
        seen = _patches(video).flatten(0, 3).double()
        variance, vectors = torch.linalg.eigh(torch.cov(seen.T))
        std = variance.flip(0)[:LATENT_CHANNELS].sqrt()
        return cls(
            seen.mean(0).float(),
            vectors.flip(1).T[:LATENT_CHANNELS].float().contiguous(),
            (std * std.mean()).rsqrt().float(),
        )

    def project(self, video: torch.Tensor) -> torch.Tensor:
        """Frames in [-1, 1], [B, 3, 4n + 1, H, W], to coefficients [B, 16, n + 1, H/8, W/8]."""
        return ((_patches(video) - self.mean) @ self.components.T * self.scale).movedim(-1, 1)


def _patches(video: torch.Tensor) -> torch.Tensor:
    """Frames [B, 3, 4n + 1, H, W], the first of them four times, as patches [B, n + 1, H/8, W/8, 768]."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, TEMPORAL_FACTOR - 1, -1, -1), video], 2)
    video = video.unflatten(4, (-1, SPATIAL_FACTOR)).unflatten(3, (-1, SPATIAL_FACTOR))
    return video.unflatten(2, (-1, TEMPORAL_FACTOR)).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def loss_of(vae: AutoencoderKLWan, video: torch.Tensor, basis: PatchBasis | None = None) -> dict[str, torch.Tensor]:
    """What is minimised, `loss`, and of what it is made: error of the frames given back and divergence of the latents'
    posterior, or, with a basis, error of the latents; and the PSNR of this batch."""
    mean, logvar = moments_at_once(vae, video).float().chunk(2, dim=1)
    logvar = logvar.clamp(-12, 4)
    if basis is None:
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        rest = {"kl": 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()}
        weight = KL_WEIGHT
    else:
        target = basis.project(video)
        z = target + SPREAD * torch.randn_like(target)
        rest = {"latents": (mean - target).pow(2).mean() + 0.01 * (logvar - 2 * math.log(SPREAD)).pow(2).mean()}
        weight = 1.0
    difference = frames_at_once(vae, z).float() - video
    error = difference.abs().mean() + 4 * difference.pow(2).mean()
    loss = error + weight * sum(rest.values())
    return {"loss": loss, "error": error, **rest, "psnr": -10 * (difference / 2).pow(2).mean().log10().detach()}


@torch.no_grad()
def set_statistics(vae: AutoencoderKLWan, video: torch.Tensor) -> None:
    """Note mean and standard deviation of the latents' posterior, per channel, in the configuration."""
    mean, logvar = torch.cat([moments_at_once(vae, to_unit(part)) for part in video.split(8)]).chunk(2, dim=1)
    variance = mean.var((0, 2, 3, 4)) + logvar.exp().mean((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.mean((0, 2, 3, 4)).tolist(), latents_std=variance.sqrt().tolist())


def train(out: Path, minutes: float, device: str) -> None:
    """Train for `minutes`, from `out/vae` where that exists, and write it; logs to `out/vae.jsonl`.

    Long narrow windows, wide short ones and those between take turns, so that it is at home at every size and length.
    At first each half learns by itself: the encoder to give principal components of patches, the decoder to undo them;
    then both together. The learning rate warms up, stays, and falls to zero over the second half of the minutes.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    on_gpu = torch.device(device).type == "cuda"
    batch, capacity = (BATCH, 2000) if on_gpu else (2, 60)
    path, rng = out / "vae", random.Random(0)
    basis = None
    if path.exists():
        vae = AutoencoderKLWan.from_pretrained(path).float()
    else:
        vae, basis = build_autoencoder(), PatchBasis.fit(to_unit(random_windows(4 * batch, *WINDOWS[1], rng, device)))
    vae.to(device)
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=1e-3)
    kept = {shape: Newest(capacity) for shape in WINDOWS}
    started, iteration, logged, progress = time.time(), 0, 0.0, 0.0
    while iteration == 0 or progress < 1:
        shape = WINDOWS[iteration % len(WINDOWS)]
        kept[shape].add(random_windows(batch if not kept[shape] else batch // 2, *shape, rng, device))
        video = to_unit(kept[shape].draw(batch)[0])
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (iteration + 1) / 100, max(0.0, 2 - 2 * progress))
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):  # the CPU's gradients overflow in it
            losses = loss_of(vae, video, basis if progress < APART else None)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        iteration += 1
        seconds = time.time() - started
        progress = seconds / max(60 * minutes, 1e-9)
        if seconds - logged >= LOG_SECONDS:
            logged = seconds
            row = {"iteration": iteration, "seconds": round(seconds, 1), "window": shape}
            note(out / "vae.jsonl", row | {name: loss.item() for name, loss in losses.items()})
    set_statistics(vae, kept[WINDOWS[0]].draw(min(8 * batch, len(kept[WINDOWS[0]])))[0])
    held_out = [clip for _, clip in held_out_clips(6, *SIZES[1])]
    psnr = reconstruction_psnr(vae, held_out)
    note(out / "vae.jsonl", {"iteration": iteration, "seconds": round(time.time() - started, 1), "held_out_psnr": psnr})
    vae.to(torch.float16).save_pretrained(path)


def note(log: Path, row: dict[str, Any]) -> None:
    """Print a row and append it to a log of JSON lines."""
    print(json.dumps(row), flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
