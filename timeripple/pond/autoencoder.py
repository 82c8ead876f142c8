"""Pond's autoencoder: 8× spatial, 8 latent channels, every frame by itself.

The latent space is fixed before any training: the eight principal components of 8×8 RGB patches, whitened. Half of the
autoencoder's work is then linear and known, so its encoder only learns to give these coefficients and its decoder to
undo them with the help of the neighbouring patches, which removes the blocks a linear decoder would show.

    python -m timeripple.pond.autoencoder --out runs/pond --iterations 3000
"""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from timeripple.pond.prompts import random_description
from timeripple.pond.scenes import render

PATCH, CHANNELS = 8, 8


@dataclass(frozen=True)
class LatentBasis:
    """Whitened principal components of RGB patches.

    mean: [192]; components: [8, 192], unit rows; std: [8], of the coefficients over the training frames.
    """

    mean: torch.Tensor
    components: torch.Tensor
    std: torch.Tensor

    @classmethod
    def fit(cls, frames: torch.Tensor) -> "LatentBasis":
        """Fit to frames in [-1, 1], [B, 3, H, W]."""
        patches = F.pixel_unshuffle(frames, PATCH).movedim(1, -1).flatten(0, -2).double()
        mean = patches.mean(0)
        variance, vectors = torch.linalg.eigh(torch.cov(patches.T))
        components = vectors.flip(1).T[:CHANNELS]
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        return cls(mean.float(), (components * largest.sign()).float(), variance.flip(0)[:CHANNELS].sqrt().float())

    @classmethod
    def load_or_fit(cls, path: Path) -> "LatentBasis":
        """The basis stored at `path`, fitted to the training pool and stored first if it is not there."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            large, small = frame_pool(200, seed=1)
            basis = cls.fit(
                torch.cat([to_unit(large[:, :, 32:96, 32:96]), to_unit(large[::2, :, :64, :64]), to_unit(small)])
            )
            save_file({"mean": basis.mean, "components": basis.components.contiguous(), "std": basis.std}, path)
        return cls(**load_file(path))

    def project(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames in [-1, 1], [B, 3, H, W], to latents [B, 8, H/8, W/8] of unit variance per channel."""
        patches = F.pixel_unshuffle(frames, PATCH).movedim(1, -1)
        return ((patches - self.mean) @ self.components.T / self.std).movedim(-1, 1)


def build_autoencoder() -> AutoencoderTiny:
    """The untrained autoencoder, 0.9 M parameters: RGB in [-1, 1] [B, 3, H, W] to latents / 2 [B, 8, H/8, W/8].

    Latents are halved inside (`scaling_factor` 2) because AutoencoderTiny's decoder squashes them with 3·tanh(x / 3).
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(48,) * 4,
        decoder_block_out_channels=(48,) * 4,
        num_encoder_blocks=(0, 1, 1, 2),
        num_decoder_blocks=(4, 3, 1, 0),
        latent_channels=CHANNELS,
        scaling_factor=2.0,
    )


def encode(vae: AutoencoderTiny, frames: torch.Tensor) -> torch.Tensor:
    """Frames in [-1, 1], [B, 3, H, W], to latents [B, 8, H/8, W/8] of about unit variance."""
    return vae.encode(frames).latents * vae.config.scaling_factor


def decode(vae: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, 8, h, w] to frames of about [-1, 1], [B, 3, 8h, 8w]."""
    return vae.decode(latents / vae.config.scaling_factor).sample


def to_unit(frames: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [-1, 1], any shape."""
    return frames.float() / 127.5 - 1


def to_tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 RGB [F, H, W, 3] to float [-1, 1] [F, 3, H, W]."""
    return to_unit(torch.from_numpy(frames).permute(0, 3, 1, 2))


def frame_pool(clips: int, seed: int, held_out: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Four frames each of random clips, uint8 [F, 3, H, W]: some rendered at 128×128, as many at 64×64."""
    rng = random.Random(seed)
    pools = []
    for size in (128, 64):
        frames = [render(random_description(rng, held_out), rng.getrandbits(31), 4, size, size) for _ in range(clips)]
        pools.append(torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2).contiguous())
    return tuple(pools)


def random_batch(pool: tuple[torch.Tensor, torch.Tensor], batch: int) -> torch.Tensor:
    """Three in four random 64×64 crops of the large frames, the rest whole small frames; [-1, 1] [batch, 3, 64, 64]."""
    large, small = pool
    crops = []
    for index in torch.randint(len(large), (batch * 3 // 4,)):
        top, left = (torch.randint(9, (2,)) * 8).tolist()
        crops.append(large[index, :, top : top + 64, left : left + 64])
    whole = small[torch.randint(len(small), (batch - len(crops),))]
    return to_unit(torch.cat([torch.stack(crops), whole]))


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderTiny, frames: torch.Tensor) -> float:
    """PSNR in dB over all pixels of float frames [-1, 1] [B, 3, H, W] after encoding and decoding."""
    error = []
    for chunk in frames.split(16):
        decoded = decode(vae, encode(vae, chunk)).clamp(-1, 1)
        error.append(((decoded - chunk) / 2).pow(2).mean().item() * len(chunk))
    return -10 * float(np.log10(sum(error) / len(frames)))


def train(out: Path, iterations: int = 3000, batch: int = 16, lr: float = 3e-3, clips: int = 400) -> None:
    """Train and write `out/vae` (safetensors); logs PSNR on held-out frames to `out/vae.jsonl`.

    The decoder sees exact coefficients with a little noise, so that it forgives what a denoiser leaves.
    """
    torch.manual_seed(0)
    basis = LatentBasis.load_or_fit(out / "basis.safetensors")
    pool = frame_pool(clips, seed=1)
    held_out_large, held_out_small = (to_unit(frames) for frames in frame_pool(16, seed=2, held_out=True))
    model = AutoencoderTiny.from_pretrained(out / "vae").float() if (out / "vae").exists() else build_autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, iterations, pct_start=0.05)
    started = time.time()
    for iteration in range(1, iterations + 1):
        frames = random_batch(pool, batch)
        latents = basis.project(frames)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = encode(model, frames)
            decoded = decode(model, latents + 0.03 * torch.randn_like(latents))
        error = decoded.float() - frames
        encoder_loss = (encoded.float() - latents).pow(2).mean()
        decoder_loss = error.abs().mean() + 4 * error.pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        (encoder_loss + decoder_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if iteration % 200 == 0 or iteration == iterations:
            row = {
                "iteration": iteration,
                "seconds": round(time.time() - started, 1),
                "encoder_loss": encoder_loss.item(),
                "decoder_psnr": -10 * (error / 2).pow(2).mean().log10().item(),
                "psnr_128": reconstruction_psnr(model, held_out_large),
                "psnr_64": reconstruction_psnr(model, held_out_small),
            }
            print(json.dumps(row), flush=True)
            with (out / "vae.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            model.save_pretrained(out / "vae")


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/pond"),
    iterations: Annotated[int, typer.Option(help="Training iterations.")] = 3000,
) -> None:
    """Train the autoencoder; goes on from `out/vae` where that exists."""
    train(out, iterations)


if __name__ == "__main__":
    typer.run(main)
