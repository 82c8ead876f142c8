"""The recipe that makes Pond's weights, from nothing to `assets/pond`.

    python -m timeripple.pond.train --device cuda --minutes 12 --out runs/pond --autoencoder assets/pond/vae
    python -m timeripple.pond.train --minutes 100 --out runs/pond --start whole --rate 0.3             # goes on
    python -m timeripple.pond.train --out runs/pond --sheet runs/pond/samples.png       # what it can do by now

The autoencoder first, where there is none (`train_autoencoder.py`); then the denoiser, on small clips first, Standard
ones then, at last clips of all sizes. Clips are rendered as they are needed, the autoencoder turns them into latents,
and each is drawn a few times. A run lasts the minutes it is given, in which the learning rate warms up, stays, and
falls to zero; a later one goes on from `out/checkpoint.pt`, or from a pipeline's weights. What is shipped is left in
`out/pipeline`.
Muon trains the matrices of the blocks, AdamW the rest; an exponential moving average of the weights is what is shipped.
"""

import itertools
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKLLTXVideo, UniPCMultistepScheduler, WanTransformer3DModel

from timeripple.pond import autoencoder, train_autoencoder
from timeripple.pond.autoencoder import SPATIAL_FACTOR, TEMPORAL_FACTOR
from timeripple.pond.clips import SIZES, Newest, held_out_descriptions, random_clips
from timeripple.pond.model import PondPromptEncoder, build_transformer, fastest_dtype, with_coordinates
from timeripple.pond.pipeline import PondPipeline, latent_frames
from timeripple.pond.prompts import concept_ids, describe


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: its share of a whole run, and how often each of `SIZES` is drawn."""

    name: str
    share: float
    sizes: tuple[float, float, float]


STAGES = (
    Stage("small", 0.27, (1.0, 0.0, 0.0)),
    Stage("whole", 0.5, (0.1, 0.9, 0.0)),
    Stage("all", 0.23, (0.1, 0.75, 0.15)),
)
AUTOENCODER_SHARE = 0.45  # of the minutes of a run that begins without one
TOKENS = {"cuda": 83_000, "cpu": 10_400}  # in a batch
CAPACITY = {"cuda": (60_000, 20_000, 2_000), "cpu": (2_000, 1_000, 100)}  # clips kept, of each size
AT_ONCE = 16  # clips rendered and encoded together
REUSE = 8  # how often a clip is drawn
MUON_LR, ADAM_LR = 2e-2, 2e-3
WARMUP = 100  # iterations
DECAY_FROM = 0.45  # of a run
EMA_DECAY = 0.998
SHIFT = 3.0  # of the flow-matching schedule, in training and in sampling
SUBJECT_WEIGHT = 3.0  # of the loss in cells on the subject or next to it, where it is 1 elsewhere
LOG_SECONDS, SAVE_SECONDS = 15, 120


def around_subject(covers: torch.Tensor) -> torch.Tensor:
    """The latent cells on the subject or next to it, bool [B, f, H/8, W/8], of where it is, bool [B, F, H, W]."""
    cells = F.max_pool2d(F.max_pool2d(covers.float(), SPATIAL_FACTOR), 3, stride=1, padding=1)
    first, rest = cells[:, :1], cells[:, 1:].unflatten(1, (-1, TEMPORAL_FACTOR)).amax(2)
    return torch.cat([first, rest], 1) > 0


class LatentClips:
    """Training clips of every size, as latents on the device."""

    def __init__(self, vae: AutoencoderKLLTXVideo, rng: random.Random, device: str):
        self.vae, self.rng, self.device = vae, rng, device
        self.tokens = TOKENS[torch.device(device).type]
        self.kept = {size: Newest(n) for size, n in zip(SIZES, CAPACITY[torch.device(device).type], strict=True)}
        self.drawn = dict.fromkeys(SIZES, 0)

    def draw(self, stage: Stage) -> tuple[torch.Tensor, ...]:
        """A batch of one size, every clip drawn `REUSE` times on average: latents, ids, cells."""
        num_frames, size = self.rng.choices(SIZES, stage.sizes)[0]
        kept = self.kept[num_frames, size]
        tokens = latent_frames(num_frames) * (size // SPATIAL_FACTOR) ** 2
        batch = max(1, self.tokens // tokens)
        self.drawn[num_frames, size] += batch
        while kept.seen < max(batch, self.drawn[num_frames, size] / REUSE):
            kept.add(*self.new(AT_ONCE, num_frames, size))
        return kept.draw(batch)

    @torch.no_grad()
    def new(self, count: int, num_frames: int, size: int) -> tuple[torch.Tensor, ...]:
        """Clips rendered and encoded: latents (float16) [B, 16, f, h, w], concept ids [B, slots], and the latent cells
        around the subject, bool [B, f, h, w]."""
        descriptions, video, covers = random_clips(count, num_frames, size, self.rng, self.device)
        latents = autoencoder.encode(self.vae, autoencoder.to_unit(video).to(self.vae.dtype))
        ids = torch.tensor([concept_ids(description) for description in descriptions], device=self.device)
        return latents.half(), ids, around_subject(covers)


def build_denoiser() -> torch.nn.ModuleDict:
    """The trained modules: transformer and prompt encoder."""
    return torch.nn.ModuleDict({"transformer": build_transformer(), "prompt_encoder": PondPromptEncoder()})


def drop_concepts(ids: torch.Tensor) -> torch.Tensor:
    """Open each slot in one clip of ten, and all slots in one clip of ten (the unconditional pass of guidance)."""
    keep = (torch.rand(ids.shape, device=ids.device) > 0.1) & (torch.rand(len(ids), 1, device=ids.device) > 0.1)
    return ids * keep


def flow_matching_loss(
    denoiser: torch.nn.ModuleDict, latents: torch.Tensor, ids: torch.Tensor, cells: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the predicted velocity `noise - clean`, sigmas stratified over the batch and shifted.

    Args:
        latents: clean, [B, 16, f, h, w]; ids: concept ids, [B, slots].
        cells: on the subject or next to it, bool [B, f, h, w]: they are few, and weigh `SUBJECT_WEIGHT`.
    """
    clean, device = latents.float(), latents.device
    u = (torch.randperm(len(clean), device=device) + torch.rand(len(clean), device=device)) / len(clean)
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn_like(clean)
    noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
    embeds = denoiser["prompt_encoder"](drop_concepts(ids))
    with torch.autocast(device.type, torch.bfloat16):
        velocity = denoiser["transformer"](with_coordinates(noisy), sigma * 1000, embeds, return_dict=False)[0]
    weight = 1 + (SUBJECT_WEIGHT - 1) * cells[:, None].float()
    return ((velocity.float() - (noise - clean)).pow(2) * weight).mean() / weight.mean()


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


def stage_at(progress: float, start: int) -> int:
    """The stage after `progress`, 0 to 1, of a run that begins with the stage of index `start`."""
    ends = list(itertools.accumulate(stage.share for stage in STAGES[start:]))
    return start + sum(progress >= end / ends[-1] for end in ends[:-1])


def load_pipeline(vae: AutoencoderKLLTXVideo, weights: dict[str, torch.Tensor]) -> PondPipeline:
    """The pipeline made of an autoencoder and the given denoiser weights."""
    denoiser = build_denoiser()
    denoiser.load_state_dict(weights)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT, num_train_timesteps=1000
    )
    return PondPipeline(cast(PondPromptEncoder, denoiser["prompt_encoder"]), denoiser["transformer"], vae, scheduler)


def export(out: Path, target: Path) -> None:
    """Write the averaged weights of the last checkpoint as a pipeline in half precision."""
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True, map_location="cpu")
    vae = AutoencoderKLLTXVideo.from_pretrained(out / "vae")
    load_pipeline(vae, checkpoint["ema"]).to(torch.float16).save_pretrained(target, max_shard_size="12MB")


def contact_sheet(pipeline: PondPipeline, path: Path, clips: int = 24, columns: int = 4) -> None:
    """Write three frames each of held-out prompts, generated at the Standard size, to a PNG."""
    import cv2

    pipeline.set_progress_bar_config(disable=True)
    strips = []
    for index, (description, _) in enumerate(held_out_descriptions(clips)):
        generator = torch.Generator().manual_seed(index)
        frames = pipeline(describe(description), None, 33, 192, 192, 14, generator=generator).frames[0]
        strips.append(np.concatenate(frames[:: len(frames) // 2], 1))
    rows = [np.concatenate(strips[i : i + columns], 1) for i in range(0, clips, columns)]
    cv2.imwrite(str(path), (np.concatenate(rows)[..., ::-1] * 255).round().astype(np.uint8))


def train(
    out: Path,
    minutes: float,
    device: str,
    finished: Path | None = None,
    init: Path | None = None,
    start: str | None = None,
    rate: float = 1.0,
) -> None:
    """One run of `minutes`, of at least one iteration.

    finished: the folder of an autoencoder that is trained; init: that of a pipeline to start from; start: the stage to
    begin with; rate: times the usual learning rate. Raises ValueError for an unknown stage.
    """
    names = [stage.name for stage in STAGES]
    if start is not None and start not in names:
        raise ValueError(f"The stage {start!r} is unknown; choose from {', '.join(names)}.")
    out.mkdir(parents=True, exist_ok=True)
    finished = init / "vae" if finished is None and init is not None else finished
    if finished is not None and not (out / "vae").exists():
        shutil.copytree(finished, out / "vae")
    path = out / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None
    done = checkpoint["iteration"] if checkpoint else 0
    started = time.time()
    if not (out / "vae").exists():
        train_autoencoder.train(out, AUTOENCODER_SHARE * minutes, device)
    vae = AutoencoderKLLTXVideo.from_pretrained(out / "vae", torch_dtype=fastest_dtype(device)).to(device)

    torch.manual_seed(done)
    torch.set_float32_matmul_precision("high")
    rng, first = random.Random(done), names.index(start) if start else 0
    denoiser = build_denoiser()
    if init is not None:
        denoiser["transformer"] = WanTransformer3DModel.from_pretrained(init / "transformer", torch_dtype=torch.float32)
        denoiser["prompt_encoder"] = PondPromptEncoder.from_pretrained(init / "prompt_encoder").float()
    denoiser.to(device)
    optimizers = build_optimizers(denoiser)
    average = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    if checkpoint:
        denoiser.load_state_dict(checkpoint["model"])
        average = {name: tensor.to(device) for name, tensor in checkpoint["ema"].items()}
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    latents = LatentClips(vae, rng, device)
    cast(WanTransformer3DModel, denoiser["transformer"]).compile_repeated_blocks(dynamic=False)

    def save() -> None:
        state = {
            "iteration": done,
            "model": denoiser.state_dict(),
            "ema": average,
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        torch.save(state, out / "checkpoint.tmp")
        (out / "checkpoint.tmp").replace(path)

    resumed, losses, began = done, [], time.time() - started
    logged = saved = began
    while done == resumed or time.time() - started < 60 * minutes:
        seconds = time.time() - started
        progress = min(1.0, (seconds - began) / max(60 * minutes - began, 1e-9))
        stage = stage_at(progress, first)
        batch = latents.draw(STAGES[stage])
        factor = rate * min(1, (done - resumed + 1) / WARMUP, (1 - progress) / (1 - DECAY_FROM))
        set_learning_rate(optimizers, factor)
        loss = flow_matching_loss(denoiser, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done += 1
        decay = min(EMA_DECAY, 1 - 1 / (0.1 * done + 1))
        torch._foreach_lerp_(list(average.values()), list(denoiser.state_dict().values()), 1 - decay)
        losses.append(loss.detach())
        if seconds - logged >= LOG_SECONDS:
            row = {"iteration": done, "stage": STAGES[stage].name, "loss": torch.stack(losses).mean().item()}
            row |= {"seconds": round(seconds, 1), "rate": round(factor, 4)}
            row |= {f"clips_{size}": kept.seen for (_, size), kept in latents.kept.items()}
            losses.clear()
            logged = seconds
            train_autoencoder.note(out / "loss.jsonl", row)
        if seconds - saved > SAVE_SECONDS:
            saved = seconds
            save()
    save()
    export(out, out / "pipeline")


def main(
    out: Annotated[Path, typer.Option(help="Checkpoints, logs and samples go here.")] = Path("runs/pond"),
    minutes: Annotated[float, typer.Option(help="How long to train; a later call goes on.")] = 60,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    start: Annotated[str | None, typer.Option(help="Begin with this stage.")] = None,
    rate: Annotated[float, typer.Option(help="Learning rate, times the usual.")] = 1.0,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Take this finished autoencoder instead of training one.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Start from the weights of this pipeline folder.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of OUT/pipeline and stop.")] = None,
) -> None:
    """Train Pond."""
    if sheet is not None:
        contact_sheet(PondPipeline.from_pretrained(out / "pipeline").to(device), sheet)
    else:
        train(out, minutes, device, autoencoder, init, start, rate)


if __name__ == "__main__":
    typer.run(main)
