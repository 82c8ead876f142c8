"""The recipe that makes Pond's weights, from nothing to `assets/pond`.

    python -m timeripple.pond.train --out runs/pond                       # everything; a later call goes on
    python -m timeripple.pond.train --out runs/pond --init assets/pond --stage clips     # from the shipped weights
    python -m timeripple.pond.train --out runs/pond --export assets/pond  # write the pipeline and stop

Low resolution first, then a few frames at a time of clips at full resolution, whole clips last: frames keep the rotary
and the input coordinates they have in their clip, so what a few teach holds for all. Clips are rendered once per size.
Muon trains the matrices of the blocks, AdamW the rest; an exponential moving average of the weights is what is shipped.
"""

import json
import multiprocessing
import random
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from timeripple.pond import autoencoder
from timeripple.pond.autoencoder import LatentBasis
from timeripple.pond.judge import subject_mask
from timeripple.pond.model import PondPromptEncoder, build_transformer, with_coordinates
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import Description, concept_ids, random_description
from timeripple.pond.scenes import render


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum."""

    name: str
    num_frames: int  # of a clip
    size: int
    clips: int
    seen: int  # frames of a clip that the denoiser sees at once, drawn anew for every batch
    batch: int
    iterations: int
    lr: float  # times the base rates
    final_lr: float  # reached linearly at the end of the stage
    subject_weight: float  # of the loss around the subject, where it is 1 elsewhere


STAGES = (
    Stage("small", 8, 64, 4000, seen=8, batch=8, iterations=3000, lr=1.0, final_lr=0.6, subject_weight=1),
    Stage("pairs", 16, 128, 2500, seen=2, batch=16, iterations=1200, lr=0.8, final_lr=0.7, subject_weight=4),
    Stage("fours", 16, 128, 2500, seen=4, batch=8, iterations=2500, lr=0.7, final_lr=0.33, subject_weight=3),
    Stage("clips", 16, 128, 2500, seen=16, batch=2, iterations=350, lr=0.3, final_lr=0.0, subject_weight=2),
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


class RotaryOfFrames(torch.nn.Module):
    """Wan's rotary embedding for some frames of a longer clip, `frames` [seen] of `num_frames`."""

    def __init__(self, rope: torch.nn.Module, num_frames: int, seen: int):
        super().__init__()
        self.rope, self.num_frames = rope, num_frames
        self.register_buffer("frames", torch.arange(seen), persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [1, seen * h * w, 1, head_dim] for hidden states [B, C, seen, h, w]."""
        whole = hidden_states.new_empty(1, 1, self.num_frames, *hidden_states.shape[3:])
        cos, sin = self.rope(whole)
        return tuple(x.unflatten(1, (self.num_frames, -1))[:, self.frames].flatten(1, 2) for x in (cos, sin))


def training_clip(stage: Stage, index: int) -> tuple[Description, np.ndarray]:
    """The clip `index` of a stage: its description and frames, uint8 RGB [F, size, size, 3]."""
    rng = random.Random(f"{stage.num_frames}x{stage.size}-{index}")
    description = random_description(rng)
    return description, render(description, rng.getrandbits(31), stage.num_frames, stage.size, stage.size)


def around_subject(frames: np.ndarray) -> torch.Tensor:
    """The latent cells on the subject or next to it, bool [F, H/8, W/8], of frames uint8 RGB [F, H, W, 3]."""
    masks = torch.from_numpy(np.stack([subject_mask(frame) for frame in frames])).float()
    return F.max_pool2d(F.max_pool2d(masks[:, None], 8), 3, stride=1, padding=1)[:, 0] > 0


@torch.no_grad()
def cached_clips(stage: Stage, basis: LatentBasis, folder: Path) -> dict[str, torch.Tensor]:
    """Training clips: latents [clips, 8, F, h, w] (float16), concept ids [clips, slots], subjects [clips, F, h, w]."""
    path = folder / f"clips-{stage.num_frames}x{stage.size}-{stage.clips}.safetensors"
    if path.exists():
        return load_file(path)
    latents, ids, subjects = [], [], []
    with multiprocessing.get_context("spawn").Pool() as pool:
        for description, frames in pool.imap(partial(training_clip, stage), range(stage.clips), chunksize=8):
            latents.append(basis.project(autoencoder.to_tensor(frames)).transpose(0, 1).half())
            ids.append(torch.tensor(concept_ids(description)))
            subjects.append(around_subject(frames))
    cache = {"latents": torch.stack(latents), "ids": torch.stack(ids), "subjects": torch.stack(subjects)}
    save_file(cache, path)
    return cache


def drop_concepts(ids: torch.Tensor) -> torch.Tensor:
    """Open each slot in one clip of ten, and all slots in one clip of ten (the unconditional pass of guidance)."""
    keep = (torch.rand(ids.shape) > 0.1) & (torch.rand(len(ids), 1) > 0.1)
    return ids * keep


def flow_matching_loss(
    denoiser: torch.nn.ModuleDict,
    transformer: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    frames: torch.Tensor,
    channel_weight: torch.Tensor,
    subject_weight: float,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity `noise - clean`, sigmas stratified over the batch and shifted.

    Args:
        batch: clips as `cached_clips` gives them; frames: those the denoiser sees, int64 [seen].
        channel_weight: [8]: latents are white, but an error in brightness is seen and one in fine texture is not.
        subject_weight: of cells around the subject, which are few; 1 elsewhere.
    """
    clean = batch["latents"].float()
    u = (torch.randperm(len(clean)) + torch.rand(len(clean))) / len(clean)
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn_like(clean)
    noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
    embeds = denoiser["prompt_encoder"](drop_concepts(batch["ids"]))
    with torch.autocast("cpu", torch.bfloat16):
        seen = with_coordinates(noisy)[:, :, frames]
        velocity = transformer(seen, sigma * 1000, embeds, return_dict=False)[0]
    error = (velocity.float() - (noise - clean)[:, :, frames]).pow(2)
    cell_weight = 1 + (subject_weight - 1) * batch["subjects"][:, None, frames].float()
    return (error * cell_weight * channel_weight.view(-1, 1, 1, 1)).mean() / cell_weight.mean()


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


def train(out: Path, minutes: float | None, init: Path | None, start: str) -> None:
    """Run the stages from `start` on, or from where `out/checkpoint.pt` stands, checkpointing every 100 iterations.

    Raises ValueError for an unknown stage.
    """
    names = [stage.name for stage in STAGES]
    if start not in names:
        raise ValueError(f"The stage {start!r} is unknown; choose from {', '.join(names)}.")
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
    done = sum(stage.iterations for stage in STAGES[: names.index(start)])
    if (out / "checkpoint.pt").exists():
        checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
        denoiser.load_state_dict(checkpoint["model"])
        average, done = checkpoint["ema"], checkpoint["iteration"]
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    torch.manual_seed(done)

    rope = denoiser["transformer"].rope
    started, first, resumed = time.time(), 0, done
    for stage in STAGES:
        if done >= first + stage.iterations:
            first += stage.iterations
            continue
        cache = cached_clips(stage, basis, out)
        rotary = RotaryOfFrames(rope, stage.num_frames, stage.seen)
        denoiser["transformer"].rope = rotary
        transformer = torch.compile(denoiser["transformer"], dynamic=False)
        weight = basis.std / basis.std.mean()
        losses = []
        for iteration in range(done - first, stage.iterations):
            progress = iteration / stage.iterations
            factor = stage.lr + (stage.final_lr - stage.lr) * progress
            warmup = min(1, (done - resumed + 1) / WARMUP)
            set_learning_rate(optimizers, factor * warmup)
            picked = torch.randint(stage.clips, (stage.batch,))
            batch = {name: tensor[picked] for name, tensor in cache.items()}
            rotary.frames.copy_(torch.randperm(stage.num_frames)[: stage.seen].sort().values)
            loss = flow_matching_loss(denoiser, transformer, batch, rotary.frames, weight, stage.subject_weight)
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
                with (out / "loss.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                state = {
                    "iteration": done,
                    "model": denoiser.state_dict(),
                    "ema": average,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                }
                torch.save(state, out / "checkpoint.tmp")
                (out / "checkpoint.tmp").replace(out / "checkpoint.pt")
                if done % 1200 == 0 or iteration + 1 == stage.iterations:
                    sample_grid(out, average, stage, done)
            if minutes is not None and time.time() - started > 60 * minutes:
                return
        first += stage.iterations


def main(
    out: Annotated[Path, typer.Option(help="Checkpoints, caches, logs and samples go here.")] = Path("runs/pond"),
    minutes: Annotated[float | None, typer.Option(help="Stop after this long; a later call goes on.")] = None,
    stage: Annotated[str, typer.Option(help="Begin with this stage.")] = STAGES[0].name,
    init: Annotated[Path | None, typer.Option(help="Start from the weights of this pipeline folder.")] = None,
    export_to: Annotated[Path | None, typer.Option("--export", help="Write the pipeline here and stop.")] = None,
) -> None:
    """Train Pond."""
    if export_to is not None:
        export(out, export_to)
    else:
        train(out, minutes, init, stage)


if __name__ == "__main__":
    typer.run(main)
