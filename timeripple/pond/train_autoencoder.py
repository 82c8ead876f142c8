"""Trains Pond's autoencoder: the first part of `train.py`, or by itself.

    python -m timeripple.pond.train_autoencoder --minutes 60 --out runs/pond

The encoder is done at once: latents are principal components of patches. So the decoder can be made better while a
denoiser learns, or after. It begins with the best linear guess of what the latents leave out; its blocks learn the
rest, in coefficients of 192 components, whose errors are those of pixels, at a fraction of the cost. Windows of
rendered clips are where most of the error is: near the subject. Muon trains the matrices, AdamW the biases.
"""

import json
import random
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from timeripple.pond.autoencoder import (
    LATENT_CHANNELS,
    build_autoencoder,
    reconstruction_psnr,
    set_statistics,
    to_unit,
)
from timeripple.pond.clips import SIZES, WINDOWS, Newest, held_out_clips, random_windows
from timeripple.pond.components import PATCH, Middle, PatchBasis, look_around, patches, write_components

FIRST = {"cuda": 800, "cpu": 160}  # windows of each shape that the linear parts are fitted to
BATCH = {"cuda": 256, "cpu": 32}  # windows
CAPACITY = {"cuda": 16_000, "cpu": 2_400}  # windows kept, of each shape
REUSE = 8  # how often a window is drawn
MUON_LR, ADAM_LR = 5e-3, 1e-3
WARMUP = 30  # iterations
NOISE = 0.02  # of latents in training, so that the decoder bears what a denoiser leaves
LOG_SECONDS, SAVE_SECONDS = 20, 120


def loss_of(middle: Middle, coefficients: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error of pixels, in [-1, 1], as far as the components [B, 192, n, h, w] reach."""
    z = coefficients[:, :LATENT_CHANNELS]
    error = middle(z + NOISE * torch.randn_like(z)).float() - coefficients
    return (error / scale.view(-1, 1, 1, 1)).pow(2).sum(1).mean() / PATCH


def train(out: Path, minutes: float, device: str) -> None:
    """Train for `minutes`, going on from `out/vae.pt`, and write `out/vae` in half precision; logs to `out/vae.jsonl`.

    The learning rate warms up, stays, and falls to zero over the last two thirds of the minutes.
    """
    kind, path = torch.device(device).type, out / "vae.pt"
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = torch.load(path, weights_only=True, map_location=device) if path.exists() else None
    first = iteration = checkpoint["iteration"] if checkpoint else 0
    torch.manual_seed(first)
    torch.set_float32_matmul_precision("high")
    rng, vae = random.Random(first), build_autoencoder().to(device).requires_grad_(False)

    def seen(shape: tuple[int, int], count: int) -> Tensor:
        return patches(to_unit(random_windows(count, *shape, rng, device)))

    if checkpoint:
        vae.load_state_dict(checkpoint["vae"])
        basis = PatchBasis.of(vae)
    else:
        examples = [torch.cat([seen(shape, 20) for _ in range(FIRST[kind] // 20)]) for shape in WINDOWS]
        basis = PatchBasis.fit(torch.cat([example.flatten(0, 3) for example in examples]))
        write_components(vae, basis)
        look_around(vae, [basis.project(example) for example in examples])
    middle = Middle(vae)
    muon = torch.optim.Muon(middle.matrices, MUON_LR, weight_decay=0.0, adjust_lr_fn="original")
    adam = torch.optim.AdamW(middle.biases, ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)
    if checkpoint:
        muon.load_state_dict(checkpoint["muon"])
        adam.load_state_dict(checkpoint["adam"])
    kept = {shape: Newest(CAPACITY[kind]) for shape in WINDOWS}
    count = BATCH[kind]

    def save() -> None:
        state = {"vae": vae.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "iteration": iteration}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    started, logged, saved, progress, losses = time.time(), 0.0, 0.0, 0.0, []
    while iteration == first or progress < 1:
        shape = WINDOWS[iteration % len(WINDOWS)]
        for _ in range(1 if len(kept[shape]) >= count else REUSE):
            kept[shape].add(basis.project(seen(shape, count // REUSE)))
        factor = min(1.0, (iteration - first + 1) / WARMUP, 1.5 * (1 - min(1.0, progress)))
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_LR * factor, ADAM_LR * factor
        with torch.autocast(kind, torch.bfloat16):
            loss = loss_of(middle, kept[shape].draw(count)[0], basis.scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(middle.parameters(), 1.0)
        for optimizer in (muon, adam):
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
    set_statistics(vae, to_unit(random_windows(64, *WINDOWS[-1], rng, device, follow=0.0)))
    psnr = reconstruction_psnr(vae, [clip for _, clip in held_out_clips(4, *SIZES[1])])
    note(out / "vae.jsonl", {"iteration": iteration, "held_out_psnr": round(psnr, 2)})
    vae.to(torch.float16).save_pretrained(out / "vae", max_shard_size="12MB")


def note(log: Path, row: dict[str, Any]) -> None:
    """Print a row and append it to a log of JSON lines."""
    print(json.dumps(row), flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="Checkpoint, log and weights go here.")] = Path("runs/pond"),
    minutes: Annotated[float, typer.Option(help="How long to train; a later call goes on.")] = 60,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train Pond's autoencoder."""
    train(out, minutes, device)


if __name__ == "__main__":
    typer.run(main)
