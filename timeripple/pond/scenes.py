"""Renders the clips Pond is trained on: shaded subjects moving over textured, moving backgrounds.

A clip is a pure function of a `Description`, a seed and a size. Backgrounds stay below 0.42 saturation and subjects
above it, which keeps the look consistent and lets OpenCV measure what a frame shows (`judge.py`).
"""

from functools import lru_cache

import cv2
import numpy as np

from timeripple.pond.prompts import Description

COLOURS = {
    "red": (226, 38, 40), "orange": (250, 130, 20), "yellow": (245, 215, 25), "green": (40, 178, 60),
    "cyan": (20, 200, 200), "blue": (40, 80, 225), "purple": (135, 50, 200), "pink": (240, 60, 165),
}  # fmt: skip
RADIUS = {"small": 0.115, "medium": 0.155, "large": 0.2}
MAX_BACKGROUND_SATURATION = 0.42

PALETTES = {  # sky at the top, sky at the horizon, ground at the horizon, ground at the bottom, height of the horizon
    "ocean": ((150, 185, 215), (215, 228, 232), (112, 160, 178), (82, 126, 150), 0.36),
    "meadow": ((170, 200, 225), (226, 234, 230), (160, 188, 128), (112, 150, 96), 0.44),
    "desert": ((188, 208, 222), (238, 230, 212), (226, 200, 154), (200, 168, 120), 0.5),
    "sky": ((128, 165, 208), (170, 196, 222), (170, 196, 222), (205, 220, 232), 0.6),
    "snow": ((176, 190, 208), (214, 222, 232), (240, 244, 248), (216, 226, 238), 0.55),
    "city": ((176, 180, 196), (222, 214, 212), (140, 138, 144), (104, 104, 112), 0.74),
}
LIGHTS = {  # a tint for the whole scene, and what the sky at the horizon is blended with
    "day": ((1.0, 1.0, 1.0), (255, 255, 255), 0.0),
    "sunset": ((0.95, 0.76, 0.68), (255, 176, 120), 0.75),
    "night": ((0.34, 0.38, 0.52), (60, 66, 100), 0.4),
}


def render(
    description: Description, seed: int, num_frames: int = 16, height: int = 128, width: int = 128
) -> np.ndarray:
    """Render a clip.

    Args:
        description: what to show; slots left open are filled from the seed.
        seed: decides start position, phases and texture offsets.
        num_frames: frames; a motion completes over the clip, whatever its length.

    Returns: uint8 RGB frames [num_frames, height, width, 3].
    """
    rng = np.random.default_rng(seed)
    progress = np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1)
    return np.stack(list(_frames(description, rng, progress, height, width)))


def render_background(description: Description, seed: int, num_frames: int, height: int, width: int) -> np.ndarray:
    """The same clip without its subject: uint8 RGB [num_frames, height, width, 3]."""
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(0, 1, 4)
    progress = np.linspace(0, 1, num_frames)
    return np.stack([_to_bytes(_background(description, offsets, p, height, width)) for p in progress])


def _frames(description, rng, progress, height, width):
    offsets = rng.uniform(0, 1, 4)
    start = rng.uniform(-0.06, 0.06, 2)
    phase = rng.uniform(0, 2 * np.pi)
    size_jitter = rng.uniform(0.94, 1.06)
    for p in progress:
        canvas = _background(description, offsets, p, height, width)
        x, y, scale, angle = pose(description.motion, p, start, phase)
        radius = RADIUS[description.size] * size_jitter * scale
        _paint_subject(canvas, description, x, y, radius, angle)
        yield _to_bytes(canvas)


def pose(motion: str, p: float, start: np.ndarray, phase: float) -> tuple[float, float, float, float]:
    """Centre (x, y) in units of the frame, scale and rotation (radians) of a subject at progress `p` in [0, 1]."""
    x, y, scale, angle = 0.5 + start[0], 0.54 + start[1], 1.0, 0.0
    travel = 0.27 * (1 - 2 * p)
    if motion == "left":
        x, angle = 0.5 + travel, 2.2 * travel / 0.27
    elif motion == "right":
        x, angle = 0.5 - travel, -2.2 * travel / 0.27
    elif motion == "up":
        y = 0.5 + travel
    elif motion == "down":
        y = 0.5 - travel
    elif motion == "bouncing":
        y = 0.72 - 0.4 * abs(np.sin(2 * np.pi * p + 0.5 * phase))
    elif motion == "circling":
        x, y = 0.5 + 0.22 * np.cos(2 * np.pi * p + phase), 0.5 + 0.22 * np.sin(2 * np.pi * p + phase)
    elif motion == "growing":
        scale = 0.55 + 0.85 * p
    elif motion == "shrinking":
        scale = 1.4 - 0.85 * p
    return x, y, scale, angle


def _to_bytes(canvas: np.ndarray) -> np.ndarray:
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


@lru_cache
def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (x + 0.5) / width, (y + 0.5) / height


@lru_cache
def _noise_texture(index: int, slope: float) -> np.ndarray:
    """A tileable 256×256 texture of 1/f^slope noise, zero mean, unit variance."""
    rng = np.random.default_rng(1000 + index)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((256, 256))) / frequency**slope
    spectrum[0, 0] = 0
    texture = np.fft.ifft2(spectrum).real
    return (texture / texture.std()).astype(np.float32)


def _noise(u: np.ndarray, v: np.ndarray, index: int = 0, slope: float = 1.6) -> np.ndarray:
    """Noise at texture coordinates (u, v), where 1 is one tile."""
    texture = _noise_texture(index, slope)
    return cv2.remap(texture, (u * 256).astype(np.float32) % 255, (v * 256).astype(np.float32) % 255, cv2.INTER_LINEAR)


def _mix(a, b, weight: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return a + (b - a) * weight[..., None]


def _smooth(low: float, high: float, value: np.ndarray) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _background(description, offsets, p: float, height: int, width: int) -> np.ndarray:
    """Float RGB canvas [height, width, 3] in 0..255, saturation limited."""
    x, y = _axes(height, width)
    pixel = 1.0 / height
    pan = {"static": 0.0, "pan left": -0.5, "pan right": 0.5}[description.camera] * (p - 0.5)
    sky_top, sky_low, ground_far, ground_near, horizon = PALETTES[description.background]
    tint, glow, glow_weight = LIGHTS[description.light]
    sky_low = np.asarray(sky_low) * (1 - glow_weight) + np.asarray(glow) * glow_weight
    u = x + pan
    far = u * 0.5 + offsets[0]
    ridge = horizon + {
        "desert": 0.05 * np.sin(2 * np.pi * (u * 0.9 + offsets[1])) + 0.02 * np.sin(2 * np.pi * (u * 2.1 + offsets[2])),
        "meadow": 0.025 * np.sin(2 * np.pi * (u * 0.8 + offsets[1])),
        "snow": 0.05 * np.sin(2 * np.pi * (u * 0.7 + offsets[1])) + 0.015 * np.sin(2 * np.pi * (u * 1.9 + offsets[2])),
    }.get(description.background, 0.0)
    ground = _smooth(-pixel, pixel, y - ridge)
    depth = np.clip((y - ridge) / np.maximum(1 - ridge, 1e-3), 0, 1)

    sky = _mix(sky_top, sky_low, np.clip(y / horizon, 0, 1))
    clouds = _noise(far * 0.6 + 0.12 * p, y * 0.5 + offsets[3], 0, 2.0)
    cloud_share = 0.75 if description.background == "sky" else 0.4
    sky = _mix(sky, (246, 246, 246), cloud_share * _smooth(0.1, 1.4, clouds))
    land = _mix(ground_far, ground_near, depth)

    if description.background == "ocean":
        squeeze = 1.0 / (0.12 + depth)
        swell = np.sin(
            2 * np.pi * (2.6 * squeeze + 0.6 * np.sin(2 * np.pi * (u * 1.2 + offsets[1])) - 1.5 * p + offsets[2])
        )
        ripple = _noise(u * 0.35 + 0.1 * p + offsets[0], 0.25 * squeeze + offsets[3] - 0.1 * p, 1, 1.7)
        land += (11 * swell * _smooth(0, 0.3, depth) + 7 * ripple)[..., None]
    elif description.background == "meadow":
        sway = 0.02 * np.sin(2 * np.pi * (u * 1.5 + p + offsets[2])) * depth
        blades = _noise((u + sway) * (1.5 - 0.6 * depth) + offsets[0], y * 0.35 + offsets[3], 2, 1.4)
        land += (9 * blades)[..., None]
    elif description.background == "desert":
        ripples = np.sin(2 * np.pi * (9 * depth + 0.8 * np.sin(2 * np.pi * (u * 0.7 + offsets[2])) + offsets[3]))
        land += (5 * ripples * _smooth(0.05, 0.3, depth) + 5 * _noise(u * 0.4, y * 0.4 + offsets[3], 3, 1.8))[..., None]
    elif description.background == "snow":
        land += (4 * _noise(u * 0.4 + offsets[0], y * 0.4, 3, 1.8))[..., None]
    elif description.background == "city":
        sky = _buildings(sky, u, y, horizon, offsets, description.light, pixel)
        stripe = _smooth(0.03, 0.01, np.abs(depth - 0.5)) * _smooth(0.25, 0.2, np.abs((u * 3) % 1 - 0.5))
        land = _mix(land, (214, 206, 190), 0.7 * stripe)

    canvas = sky if description.background == "sky" else sky + (land - sky) * ground[..., None]
    canvas = canvas * np.asarray(tint, np.float32)
    if description.background == "snow":
        canvas = _snowfall(canvas, u, y, p, offsets)
    high, low = canvas.max(-1, keepdims=True), canvas.min(-1, keepdims=True)
    shrink = np.minimum(1, MAX_BACKGROUND_SATURATION * high / np.maximum(high - low, 1e-3))
    return (high - (high - canvas) * shrink).astype(np.float32)


def _buildings(sky, u, y, horizon, offsets, light, pixel):
    blocks = (u + offsets[1]) * 5
    number = np.floor(blocks)
    top = horizon - 0.16 - 0.3 * (np.sin(number * 12.9898 + 4.1) * 43.7 % 1)
    inside = _smooth(-pixel, pixel, y - top) * _smooth(0.5, 0.46, np.abs(blocks % 1 - 0.5))
    shade = 0.82 + 0.18 * (np.sin(number * 78.2) * 15.7 % 1)
    sky = _mix(sky, (150, 150, 165), inside) * (1 + inside * (shade - 1))[..., None]
    windows = _smooth(0.32, 0.2, np.abs(blocks * 2 % 1 - 0.5)) * _smooth(0.32, 0.2, np.abs(y * 11 % 1 - 0.5)) * inside
    return _mix(sky, (255, 236, 190) if light != "day" else (205, 212, 222), 0.55 * windows)


def _snowfall(canvas, u, y, p, offsets):
    for layer, (cells, speed) in enumerate(((3, 0.5), (5, 0.35))):
        gx, gy = u * cells + 3 * offsets[layer], (y - speed * p) * cells + 5 * offsets[layer + 1]
        column, row = np.floor(gx), np.floor(gy)
        jx, jy = (np.sin(column * 7.1 + row * 3.7) * 43758.5) % 1, (np.sin(column * 2.3 + row * 9.1) * 24634.6) % 1
        distance = np.hypot(gx % 1 - 0.25 - 0.5 * jx, gy % 1 - 0.25 - 0.5 * jy) / cells
        canvas = _mix(canvas, (250, 251, 253), 0.85 * _smooth(0.024, 0.008, distance))
    return canvas


def subject_distance(subject: str, px: np.ndarray, py: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) of a subject of unit radius at points (px, py), y pointing down."""
    if subject == "ball":
        return np.hypot(px, py) - 1
    if subject == "cube":
        return np.maximum(np.abs(px), np.abs(py)) - 0.84
    if subject == "ring":
        return np.abs(np.hypot(px, py) - 0.74) - 0.3
    if subject == "pyramid":
        return np.maximum(0.894 * np.abs(px) - 0.447 * (py + 1.0), py - 0.85)
    if subject == "star":
        angle = np.arctan2(px, -py)
        sector = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        radius = np.hypot(px, py)
        qx, qy = radius * np.cos(sector), radius * np.sin(sector)
        tip, notch = np.array([1.15, 0.0]), 0.52 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        edge = notch - tip
        normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
        return -((qx - tip[0]) * normal[0] + (qy - tip[1]) * normal[1])
    if subject == "heart":
        qx, qy = np.abs(px), -py + 0.15
        lobe = np.hypot(qx - 0.46, qy - 0.42) - 0.58
        body = np.maximum(0.75 * qx - 0.66 * (qy + 1.12) + 0.02, qy - 0.42)
        return np.minimum(lobe, np.maximum(body, qx - 1.02))
    if subject == "fish":
        body = (np.hypot((px + 0.15) / 0.92, py / 0.62) - 1) * 0.66
        tail = np.maximum(np.abs(py) - 0.95 * (px - 0.45), px - 1.18)
        return np.minimum(body, tail)
    raise ValueError(f"Unknown subject {subject!r}.")


def _paint_subject(canvas, description, cx: float, cy: float, radius: float, angle: float) -> None:
    """Shadow, shaded body and highlight, in place. Only balls and rings turn as they roll; fish look where they go."""
    height, width = canvas.shape[:2]
    x, y = _axes(height, width)
    if description.subject == "fish":
        radius = 1.2 * radius
    px, py = (x - cx) / radius, (y - cy) / radius
    if description.subject == "fish" and description.motion == "right":
        px = -px
    edge = 1.2 / (height * radius)
    shadow = subject_distance(description.subject, px - 0.12, py - 0.3)
    canvas *= (1 - 0.3 * _smooth(0.3, -0.25, shadow))[..., None]

    distance = subject_distance(description.subject, px, py)
    cover = _smooth(edge, -edge, distance)
    colour = np.asarray(COLOURS[description.colour], np.float32)
    light = 1.0 - 0.16 * (px * 0.5 + py * 0.8) - 0.22 * _smooth(-0.3, 0.0, distance)
    if description.subject == "cube":
        light = np.where(py < -0.5, 1.12, np.where(px > 0.45, 0.72, 0.94))
    elif description.subject == "pyramid":
        light = np.where(px > 0.12 * (py + 1), 0.74, 1.06)
    elif description.subject in ("ball", "ring"):
        light = light * (1 - 0.16 * (np.sin(3 * (np.arctan2(py, px) - angle)) > 0))
    body = colour * light[..., None]
    gloss = 0.5 * np.exp(-((px + 0.34) ** 2 + (py + 0.4) ** 2) / 0.035)
    if description.subject == "fish":
        eye = np.hypot(px + 0.62, py + 0.12)
        body = _mix(body, (250, 250, 250), _smooth(0.19, 0.15, eye))
        body = _mix(body, (20, 20, 30), _smooth(0.1, 0.06, eye))
        gloss = 0
    elif description.subject == "ring":
        gloss = 0
    body = _mix(body, (255, 255, 255), gloss * np.ones_like(px))
    canvas += (body - canvas) * cover[..., None]
