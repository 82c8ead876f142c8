"""Renders the clips Pond is trained on: shaded subjects moving over textured, moving backgrounds.

A clip is a pure function of a `Description`, a seed and a size. Many are rendered at once, on any device.
Backgrounds stay below 0.42 saturation and subjects
above it, which keeps the look consistent and lets OpenCV measure what a frame shows (`judge.py`).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timeripple.pond.backgrounds import background
from timeripple.pond.drawing import Chance, Clips, mix, smooth
from timeripple.pond.prompts import Description

COLOURS = {
    "red": (226, 38, 40), "orange": (250, 130, 20), "yellow": (245, 215, 25), "green": (40, 178, 60),
    "cyan": (20, 200, 200), "blue": (40, 80, 225), "purple": (135, 50, 200), "pink": (240, 60, 165),
}  # fmt: skip
RADIUS = {"small": 0.115, "medium": 0.155, "large": 0.2}


def render(
    description: Description, seed: int, num_frames: int = 33, height: int = 192, width: int = 192
) -> np.ndarray:
    """Render a clip.

    Args:
        description: what to show, complete.
        seed: decides what the description does not: place, speed, horizon, clouds, phases of textures.
        num_frames: frames; a motion completes over the clip, whatever its length.

    Returns: uint8 RGB frames [num_frames, height, width, 3].
    """
    video, _ = render_clips([description], [seed], progress(num_frames)[None], height, width)
    return video[0].permute(1, 2, 3, 0).numpy()


def progress(num_frames: int) -> Tensor:
    """How far a clip is at each of its frames, 0 to 1: [num_frames]."""
    return torch.linspace(0, 1, num_frames) if num_frames > 1 else torch.zeros(1)


def render_background(description: Description, seed: int, num_frames: int, height: int, width: int) -> np.ndarray:
    """The same clip without its subject: uint8 RGB [num_frames, height, width, 3]."""
    canvas = background(Clips([description], [seed], progress(num_frames)[None], height, width))
    return _to_bytes(canvas)[0].permute(1, 2, 3, 0).numpy()


def render_clips(
    descriptions: Sequence[Description],
    seeds: Sequence[int],
    at: Tensor,
    height: int,
    width: int,
    *,
    window: int | None = None,
    corners: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Render many clips, or a square window of each.

    Args:
        at: how far each clip is at each of the frames wanted, 0 to 1, [B, F].
        window: height and width of the windows in pixels; corners: their top and left, int [B, 2].

    Returns: frames, uint8 RGB [B, 3, F, height, width], and where their subjects are, bool [B, F, height, width].
    """
    shape = (at.shape[1], height, width) if window is None else (at.shape[1], window, window)
    corners = torch.zeros(len(seeds), 2) if corners is None else corners
    video = torch.empty(len(seeds), 3, *shape, dtype=torch.uint8, device=device)
    cover = torch.empty(len(seeds), *shape, dtype=torch.bool, device=device)
    alike = defaultdict(list)
    for index, description in enumerate(descriptions):
        alike[description.background, description.subject].append(index)
    for group in alike.values():
        clips = Clips([descriptions[i] for i in group], [seeds[i] for i in group], at[group], height, width, device)
        top, left = corners[group].T
        clips.look_at(top, left, *shape[1:])
        canvas, covered = _with_subject(clips, background(clips))
        video[group], cover[group] = _to_bytes(canvas), covered[:, 0] > 0.5
    return video, cover


@dataclass(frozen=True)
class Pose:
    """Of a subject over frames [F]: centre in units of the frame, scale, how far it has rolled (its pattern) and turned
    (all of it), in radians."""

    x: Tensor
    y: Tensor
    scale: Tensor
    roll: Tensor
    turn: Tensor


def pose(motion: str | None, p: Tensor, chance: Chance) -> Pose:
    """Where a subject is at progress `p` [F]."""
    still = torch.zeros_like(p)
    x, y, scale, roll, turn = still + 0.5 + chance.start[0], still + 0.54 + chance.start[1], still + 1, still, still
    travel = 0.26 * chance.speed * (1 - 2 * p)
    if motion == "left":
        x, roll = 0.5 + travel, 8 * travel
    elif motion == "right":
        x, roll = 0.5 - travel, -8 * travel
    elif motion == "up":
        y = 0.52 + travel
    elif motion == "down":
        y = 0.52 - travel
    elif motion == "bouncing":
        y = 0.72 - 0.36 * chance.speed * (2 * math.pi * p + chance.phase / 2).sin().abs()
    elif motion == "circling":
        angle = chance.sense * 2 * math.pi * p + chance.phase
        x, y = 0.5 + 0.21 * chance.speed * angle.cos(), 0.5 + 0.21 * chance.speed * angle.sin()
    elif motion == "growing":
        scale = 0.55 + 0.85 * p
    elif motion == "shrinking":
        scale = 1.4 - 0.85 * p
    elif motion == "spinning":
        turn = chance.sense * 2 * math.pi * chance.speed * p
    return Pose(x, y, scale, roll, turn)


def _to_bytes(canvas: Tensor) -> Tensor:
    return (canvas + 0.5).clamp(0, 255).to(torch.uint8)


def subject_distance(subject: str, px: Tensor, py: Tensor) -> Tensor:
    """Signed distance (negative inside) of a subject of unit radius at points (px, py), y pointing down."""
    if subject == "ball":
        return torch.hypot(px, py) - 1
    if subject == "cube":
        return torch.maximum(px.abs(), py.abs()) - 0.84
    if subject == "ring":
        return (torch.hypot(px, py) - 0.74).abs() - 0.3
    if subject == "pyramid":
        return torch.maximum(0.894 * px.abs() - 0.447 * (py + 1.0), py - 0.85)
    if subject == "star":
        sector = ((torch.atan2(px, -py) + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5).abs()
        radius = torch.hypot(px, py)
        tip, notch = 1.15, (0.52 * math.cos(math.pi / 5), 0.52 * math.sin(math.pi / 5))
        length = math.hypot(notch[0] - tip, notch[1])
        across, along = -notch[1] / length, (notch[0] - tip) / length
        return -((radius * sector.cos() - tip) * across + radius * sector.sin() * along)
    if subject == "heart":
        qx, qy = px.abs(), -py + 0.15
        lobe = torch.hypot(qx - 0.46, qy - 0.42) - 0.58
        body = torch.maximum(0.75 * qx - 0.66 * (qy + 1.12) + 0.02, qy - 0.42)
        return torch.minimum(lobe, torch.maximum(body, qx - 1.02))
    if subject == "fish":
        body = (torch.hypot((px + 0.15) / 0.92, py / 0.62) - 1) * 0.66
        tail = torch.maximum(py.abs() - 0.95 * (px - 0.45), px - 1.18)
        return torch.minimum(body, tail)
    raise ValueError(f"Unknown subject {subject!r}.")


def _with_subject(clips: Clips, canvas: Tensor) -> tuple[Tensor, Tensor]:
    """The canvas with shadow, shaded body and highlight, and how much of each pixel the subject covers, 0 to 1.

    Light and shadow stay where they are when a subject turns. Fish look where they go.
    """
    subject, x, y = clips.subject, clips.x, clips.y
    poses = [pose(d.motion, p, c) for d, p, c in zip(clips.descriptions, clips.at, clips.chances, strict=True)]

    def over_frames(name: str) -> Tensor:
        return torch.stack([getattr(one, name) for one in poses]).view(clips.p.shape).to(clips.device)

    sizes = [RADIUS[size] * (1.2 if subject == "fish" else 1.0) for size in clips.concepts("size")]
    radius = clips.numbers(sizes) * clips.chance("size") * over_frames("scale")
    wx, wy = (x - over_frames("x")) * clips.aspect / radius, (y - over_frames("y")) / radius
    cos, sin = over_frames("turn").cos(), over_frames("turn").sin()
    mirror = 1 - 2 * clips.is_("motion", "right") if subject == "fish" else 1

    def turned(px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
        return mirror * (cos * px + sin * py), cos * py - sin * px

    shadow = subject_distance(subject, *turned(wx - 0.12, wy - 0.3))
    canvas = canvas * (1 - 0.3 * smooth(0.3, -0.25, shadow))

    px, py = turned(wx, wy)
    distance = subject_distance(subject, px, py)
    edge = 1.2 / (clips.height * radius)
    cover = smooth(edge, -edge, distance)
    light = 1.0 - 0.16 * (wx * 0.5 + wy * 0.8) - 0.22 * smooth(-0.3, 0.0, distance)
    if subject == "cube":
        light = 0.94 - 0.22 * (px > 0.45) + (0.18 + 0.22 * (px > 0.45)) * (py < -0.5)
    elif subject == "pyramid":
        light = 1.06 - 0.32 * (px > 0.12 * (py + 1))
    elif subject in ("ball", "ring"):
        light = light * (1 - 0.16 * ((3 * (torch.atan2(py, px) - over_frames("roll"))).sin() > 0))
    body = clips.numbers([COLOURS[colour] for colour in clips.concepts("colour")]) * light
    if subject == "fish":
        eye = torch.hypot(px + 0.62, py + 0.12)
        body = mix(body, (250, 250, 250), smooth(0.19, 0.15, eye))
        body = mix(body, (20, 20, 30), smooth(0.1, 0.06, eye))
    elif subject != "ring":
        body = mix(body, (255, 255, 255), 0.5 * (-((wx + 0.34) ** 2 + (wy + 0.4) ** 2) / 0.035).exp())
    return canvas + (body - canvas) * cover, cover
