"""The recipe that makes Pond's weights, from nothing to `assets/pond`.

    python -m timeripple.pond.train --out runs/pond                      # everything, resumable at any moment
    python -m timeripple.pond.train --out runs/pond --init assets/pond   # go on from the shipped weights
    python -m timeripple.pond.train --out runs/pond --export assets/pond # write the pipeline and stop

Low resolution first (RoPE carries over), full resolution last. Clips are rendered and projected once per stage.
Muon trains the matrices of the blocks, AdamW the rest; an exponential moving average of the weights is what is shipped.
"""

import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from timeripple.pond import autoencoder
from timeripple.pond.autoencoder import LatentBasis
from timeripple.pond.model import PondPromptEncoder, build_transformer, with_coordinates
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import concept_ids, random_description
from timeripple.pond.scenes import render


@dataclass(frozen=True)
class Stage:
    """One resolution of the curriculum."""

    name: str
    num_frames: int
    size: int
    clips: int
    batch: int
    iterations: int
    lr: float  # times the base rates
    final_lr: float  # reached linearly at the end of the stage

    @property
    def tokens(self) -> int:
        return self.num_frames * (self.size // 8) ** 2


STAGES = (
    Stage("512", num_frames=8, size=64, clips=4000, batch=8, iterations=3000, lr=1.0, final_lr=0.6),
    Stage("4096", num_frames=16, size=128, clips=500, batch=2, iterations=270, lr=0.7, final_lr=0.0),
)
MUON_LR, ADAM_LR = 2e-2, 2e-3
WARMUP = 50
EMA_DECAY = 0.995
SHIFT = 3.0  # of the flow-matching schedule, in training and in sampling
SAMPLE_PROMPTS = (
    "a red ball rolling left across the ocean at sunset",
    "a large green fish drifting to the right in the sky by day",
    "a purple star bouncing over the snow at night",
    "a yellow heart growing over a meadow by day",
)


def build_denoiser() -> torch.nn.ModuleDict:
    """The trained modules: transformer and prompt encoder."""
    return torch.nn.ModuleDict({"transformer": build_transformer(), "prompt_encoder": PondPromptEncoder()})


@torch.no_grad()
def cached_latents(stage: Stage, basis: LatentBasis, folder: Path) -> dict[str, torch.Tensor]:
    """Latents [clips, 8, F, h, w] (float16) and concept ids [clips, slots] of a stage's training clips."""
    path = folder / f"latents-{stage.num_frames}x{stage.size}-{stage.clips}.safetensors"
    if path.exists():
        return load_file(path)
    rng = random.Random(stage.tokens)
    latents, ids = [], []
    for _ in range(stage.clips):
        description = random_description(rng)
        frames = render(description, rng.getrandbits(31), stage.num_frames, stage.size, stage.size)
        latents.append(basis.project(autoencoder.to_tensor(frames)).transpose(0, 1).half())
        ids.append(torch.tensor(concept_ids(description)))
    cache = {"latents": torch.stack(latents), "ids": torch.stack(ids)}
    save_file(cache, path)
    return cache


def drop_concepts(ids: torch.Tensor) -> torch.Tensor:
    """Open each slot in one clip of ten, and all slots in one clip of ten (the unconditional pass of guidance)."""
    keep = (torch.rand(ids.shape) > 0.1) & (torch.rand(len(ids), 1) > 0.1)
    return ids * keep


def flow_matching_loss(
    denoiser: torch.nn.ModuleDict, transformer, clean: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the predicted velocity `noise - clean`, sigmas stratified over the batch and shifted.

    weight: [8], of the channels: latents are white, but an error in brightness is seen and one in fine texture is not.
    """
    u = (torch.randperm(len(clean)) + torch.rand(len(clean))) / len(clean)
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn_like(clean)
    noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
    embeds = denoiser["prompt_encoder"](drop_concepts(ids))
    with torch.autocast("cpu", torch.bfloat16):
        velocity = transformer(with_coordinates(noisy), sigma * 1000, embeds, return_dict=False)[0]
    error = (velocity.float() - (noise - clean)).pow(2).mean((0, 2, 3, 4))
    return (error * weight).mean()


def build_optimizers(denoiser: torch.nn.ModuleDict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    named = list(denoiser.named_parameters())
    matrices = [p for name, p in named if ".blocks." in name and p.ndim == 2]
    rest = [p for name, p in named if not (".blocks." in name and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.02, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer, base in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = base * factor


def load_pipeline(out: Path, weights: dict[str, torch.Tensor]) -> PondPipeline:
    """The pipeline made of `out/vae` and the given denoiser weights."""
    denoiser = build_denoiser()
    denoiser.load_state_dict(weights)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    vae = AutoencoderTiny.from_pretrained(out / "vae")
    return PondPipeline(denoiser["prompt_encoder"], denoiser["transformer"], vae, scheduler)


def export(out: Path, target: Path) -> None:
    """Write the averaged weights of the last checkpoint as a pipeline in half precision."""
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    load_pipeline(out, checkpoint["ema"]).to(torch.float16).save_pretrained(target)


def sample_grid(out: Path, weights: dict[str, torch.Tensor], stage: Stage, step: int) -> None:
    """Write `out/samples-<step>.png`: a row per prompt, four frames each."""
    import cv2

    pipeline = load_pipeline(out, weights)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    frames = pipeline(
        list(SAMPLE_PROMPTS), None, stage.num_frames, stage.size, stage.size, 12, generator=generator
    ).frames
    picked = frames[:, np.linspace(0, stage.num_frames - 1, 4).astype(int)]
    grid = np.concatenate([np.concatenate(clip, 1) for clip in picked], 0)
    cv2.imwrite(str(out / f"samples-{step:06d}.png"), (grid[..., ::-1] * 255).round().astype(np.uint8))


def train(out: Path, minutes: float | None, init: Path | None) -> None:
    """Run every stage from where `out/checkpoint.pt` stands, checkpointing every 100 iterations."""
    out.mkdir(parents=True, exist_ok=True)
    if init is not None and not (out / "vae").exists():
        shutil.copytree(init / "vae", out / "vae")
    basis = LatentBasis.load_or_fit(out / "basis.safetensors")
    if not (out / "vae").exists():
        autoencoder.train(out)

    torch.manual_seed(0)
    denoiser = build_denoiser()
    if init is not None:
        denoiser["transformer"] = WanTransformer3DModel.from_pretrained(init / "transformer").float()
        denoiser["prompt_encoder"] = PondPromptEncoder.from_pretrained(init / "prompt_encoder").float()
    optimizers = build_optimizers(denoiser)
    average = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    done = 0
    if (out / "checkpoint.pt").exists():
        checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
        denoiser.load_state_dict(checkpoint["model"])
        average, done = checkpoint["ema"], checkpoint["iteration"]
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    torch.manual_seed(done)

    started, first = time.time(), 0
    for stage in STAGES:
        if done >= first + stage.iterations:
            first += stage.iterations
            continue
        cache = cached_latents(stage, basis, out)
        transformer = torch.compile(denoiser["transformer"], dynamic=False)
        weight = basis.std / basis.std.mean()
        losses = []
        for iteration in range(done - first, stage.iterations):
            progress = iteration / stage.iterations
            factor = stage.lr + (stage.final_lr - stage.lr) * progress
            set_learning_rate(optimizers, factor * min(1, (done + 1) / WARMUP))
            picked = torch.randint(len(cache["latents"]), (stage.batch,))
            clean, ids = cache["latents"][picked].float(), cache["ids"][picked]
            loss = flow_matching_loss(denoiser, transformer, clean, ids, weight)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done += 1
            decay = min(EMA_DECAY, 1 - 1 / (0.1 * done + 1))
            for name, tensor in denoiser.state_dict().items():
                average[name].lerp_(tensor, 1 - decay)
            losses.append(loss.item())
            if done % 100 == 0 or iteration + 1 == stage.iterations:
                mean = sum(losses) / len(losses)
                row = {"iteration": done, "stage": stage.name, "loss": mean, "seconds": time.time() - started}
                losses.clear()
                print(json.dumps(row), flush=True)
                with (out / "loss.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
                state = {
                    "iteration": done,
                    "model": denoiser.state_dict(),
                    "ema": average,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                }
                torch.save(state, out / "checkpoint.tmp")
                (out / "checkpoint.tmp").replace(out / "checkpoint.pt")
                if done % 400 == 0 or iteration + 1 == stage.iterations:
                    sample_grid(out, average, stage, done)
            if minutes is not None and time.time() - started > 60 * minutes:
                return
        first += stage.iterations


def main(
    out: Annotated[Path, typer.Option(help="Checkpoints, caches, logs and samples go here.")] = Path("runs/pond"),
    minutes: Annotated[float | None, typer.Option(help="Stop after this long; a later call goes on.")] = None,
    init: Annotated[Path | None, typer.Option(help="Start from the weights of this pipeline folder.")] = None,
    export_to: Annotated[Path | None, typer.Option("--export", help="Write the pipeline here and stop.")] = None,
) -> None:
    """Train Pond."""
    if export_to is not None:
        export(out, export_to)
    else:
        train(out, minutes, init)


if __name__ == "__main__":
    typer.run(main)
