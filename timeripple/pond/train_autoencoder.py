"""Trains Pond's autoencoder: the first part of `train.py`, or by itself.

    python -m timeripple.pond.train_autoencoder --minutes 60 --out runs/pond
    python -m timeripple.pond.train_autoencoder --device cuda --minutes 3 --init assets/pond/vae

The encoder is done at once: latents are principal components of patches. So the decoder can be made better while a
denoiser learns, or after. It begins with the best linear guess of what the latents leave out; its blocks learn the
rest, in coefficients of 192 components, whose errors are those of pixels, at a fraction of the cost. Cells that the
latents tell little of, most of them at the subject's border, are drawn more often and weigh less. Muon trains the
matrices, AdamW the biases.
"""

import json
import random
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from timeripple.pond.autoencoder import (
    LATENT_CHANNELS,
    build_autoencoder,
    reconstruction_psnr,
    set_statistics,
    to_unit,
)
from timeripple.pond.clips import SIZES, WINDOWS, Newest, held_out_clips, random_windows
from timeripple.pond.components import PATCH, Middle, PatchBasis, around, look_around, patches, write_components

FIRST = {"cuda": 800, "cpu": 240}  # windows of each shape that the linear parts are fitted to
BATCH = {"cuda": 65_536, "cpu": 4_096}  # cells
CAPACITY = {"cuda": 4_000_000, "cpu": 200_000}  # cells kept
NEW = {"cuda": 64, "cpu": 8}  # windows rendered at once
REUSE = 20  # how often a cell is drawn
MUON_LR, ADAM_LR = 5e-3, 1e-3
FOLLOW = 0.6  # of the windows are where the subject is
WARMUP = 30  # iterations
NOISE = 0.02  # of latents in training, so that the decoder bears what a denoiser leaves
LOG_SECONDS, SAVE_SECONDS = 20, 120


def draw_cells(coefficients: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some cells of coefficients [B, 192, n, h, w], the likelier the more their latents leave out, up to certainty at
    twice the mean.

    Returns: latents around them [N, 432], their coefficients [N, 192], and one over their probability [N].
    """
    seen = around(coefficients[:, :LATENT_CHANNELS]).flatten(0, 3)
    wanted = coefficients.movedim(1, -1).flatten(0, 3)
    left_out = (wanted / scale)[:, LATENT_CHANNELS:].pow(2).sum(1)
    chance = (left_out / (2 * left_out.mean())).clamp(0.02, 1)
    picked = torch.rand_like(chance) < chance
    return seen[picked].half(), wanted[picked].half(), 1 / chance[picked]


def loss_of(middle: Middle, seen: Tensor, wanted: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error of pixels, in [-1, 1], as far as the components reach, of cells as `draw_cells` gives them."""
    error = (middle(seen + NOISE * torch.randn_like(seen)).float() - wanted) / scale
    return (error.pow(2).sum(1) * weight).sum() / weight.sum() / PATCH


def train(out: Path, minutes: float, device: str, init: Path | None = None) -> None:
    """Train for `minutes`, going on from `out/vae.pt` or from the autoencoder in the folder `init`, which keeps its
    latents, and write `out/vae` in half precision; logs to `out/vae.jsonl`.

    The learning rate warms up, stays, and falls to zero over the last two thirds of the minutes.
    """
    kind, path = torch.device(device).type, out / "vae.pt"
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = torch.load(path, weights_only=True, map_location=device) if path.exists() else None
    first = iteration = checkpoint["iteration"] if checkpoint else 0
    torch.manual_seed(first)
    torch.set_float32_matmul_precision("high")
    rng = random.Random(first)
    vae = build_autoencoder() if init is None else AutoencoderKLLTXVideo.from_pretrained(init).float()
    vae.to(device).requires_grad_(False)

    def windows(shape: tuple[int, int], follow: float) -> Tensor:
        return patches(to_unit(random_windows(NEW[kind], *shape, rng, device, follow)))

    if checkpoint:
        vae.load_state_dict(checkpoint["vae"])
    elif init is None:
        examples = [torch.cat([windows(shape, 0) for _ in range(FIRST[kind] // NEW[kind])]) for shape in WINDOWS]
        basis = PatchBasis.fit(torch.cat([example.flatten(0, 3) for example in examples]))
        write_components(vae, basis)
        look_around(vae, [basis.project(example) for example in examples])
        set_statistics(vae, to_unit(random_windows(64, *WINDOWS[-1], rng, device)))
    basis, middle = PatchBasis.of(vae), Middle(vae)
    muon = torch.optim.Muon(middle.matrices, MUON_LR, weight_decay=0.0, adjust_lr_fn="original")
    adam = torch.optim.AdamW(middle.biases, ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)
    optimizers: list[torch.optim.Optimizer] = [muon, adam]
    if checkpoint:
        muon.load_state_dict(checkpoint["muon"])
        adam.load_state_dict(checkpoint["adam"])
    kept, drawn = Newest(CAPACITY[kind]), 0

    def save() -> None:
        state = {"vae": vae.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "iteration": iteration}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    started, logged, saved, progress, losses = time.time(), 0.0, 0.0, 0.0, []
    while iteration == first or progress < 1:
        while kept.seen < max(4 * BATCH[kind], drawn / REUSE):
            coefficients = basis.project(windows(rng.choice(WINDOWS), FOLLOW))
            kept.add(*draw_cells(coefficients, basis.scale))
        drawn += BATCH[kind]
        factor = min(1.0, (iteration - first + 1) / WARMUP, 1.5 * (1 - min(1.0, progress)))
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_LR * factor, ADAM_LR * factor
        seen, wanted, weight = kept.draw(BATCH[kind])
        with torch.autocast(kind, torch.bfloat16):
            loss = loss_of(middle, seen, wanted, weight, basis.scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(middle.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        iteration += 1
        losses.append(loss.detach())
        seconds = time.time() - started
        progress = seconds / max(60 * minutes, 1e-9)
        if seconds - logged >= LOG_SECONDS:
            logged = seconds
            psnr = -10 * (torch.stack(losses).mean() / 4).log10().item()
            losses.clear()
            note(out / "vae.jsonl", {"iteration": iteration, "seconds": round(seconds, 1), "psnr": round(psnr, 3)})
        if seconds - saved >= SAVE_SECONDS:
            saved = seconds
            save()
    save()
    psnr = reconstruction_psnr(vae, [clip for _, clip in held_out_clips(4, *SIZES[1])])
    note(out / "vae.jsonl", {"iteration": iteration, "held_out_psnr": round(psnr, 2)})
    vae.half().save_pretrained(out / "vae", max_shard_size="12MB")


def note(log: Path, row: dict[str, Any]) -> None:
    """Print a row and append it to a log of JSON lines."""
    print(json.dumps(row), flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="Checkpoint, log and weights go here.")] = Path("runs/pond"),
    minutes: Annotated[float, typer.Option(help="How long to train; a later call goes on.")] = 60,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    init: Annotated[Path | None, typer.Option(help="Go on from the weights in this folder; latents stay.")] = None,
) -> None:
    """Train Pond's autoencoder."""
    train(out, minutes, device, init)


if __name__ == "__main__":
    typer.run(main)
