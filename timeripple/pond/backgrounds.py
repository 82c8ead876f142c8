"""Skies, grounds and weather behind a subject, never as strongly coloured as subjects are."""

import torch
from torch import Tensor

from timeripple.pond.drawing import Clips, dots, mix, noise, smooth, wave

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


def background(clips: Clips) -> Tensor:
    """Canvas in 0..255, saturation limited."""
    place, p, x, y = clips.background, clips.p, clips.x, clips.y
    a, b, c, d = clips.a, clips.b, clips.c, clips.d
    pan = 0.5 * (clips.is_("camera", "pan right") - clips.is_("camera", "pan left")) * (p - 0.5)
    sky_top, sky_low, ground_far, ground_near, usual_horizon = PALETTES[place]
    horizon = usual_horizon + clips.chance("horizon")
    lights = [LIGHTS[light] for light in clips.concepts("light")]
    tint, glow, glow_weight = (clips.numbers(list(column)) for column in zip(*lights, strict=True))
    u = x + pan
    ridge = horizon
    if place == "desert":
        ridge = horizon + 0.05 * wave(u * 0.9 + b) + 0.02 * wave(u * 2.1 + c)
    elif place == "meadow":
        ridge = horizon + 0.025 * wave(u * 0.8 + b)
    elif place == "snow":
        ridge = horizon + 0.05 * wave(u * 0.7 + b) + 0.015 * wave(u * 1.9 + c)
    ground = smooth(-1 / clips.height, 1 / clips.height, y - ridge)
    depth = ((y - ridge) / (1 - ridge).clamp(min=1e-3)).clamp(0, 1)

    sky = mix(sky_top, mix(sky_low, glow, glow_weight), (y / horizon).clamp(0, 1))
    if place != "city" and clips.is_("light", "sunset").any():
        sun = torch.hypot((u - 0.2 - 0.6 * c) * clips.aspect, y - horizon + 0.1)
        shine = 0.8 * (-((sun / 0.16) ** 2)).exp() + 0.9 * smooth(0.062, 0.054, sun)
        sky = mix(sky, (255, 226, 190), clips.is_("light", "sunset") * shine)
    if place != "snow" and clips.is_("light", "night").any():
        distance, own = dots(u * 0.8 + a, y + b, 9)
        twinkle = (0.6 + 0.4 * wave(own + 2 * p)) * (own > 0.3) * smooth(0.011, 0.003, distance)
        sky = mix(sky, (600, 610, 640), clips.is_("light", "night") * twinkle)
    cloudy = clips.chance("clouds")
    clouds = noise(u * 0.3 + a + clips.chance("wind") * p, y * 0.5 + d, 0, 2.0)
    share = (0.75 if place == "sky" else 0.4) * (0.4 + 0.6 * cloudy).clamp(max=1)
    sky = mix(sky, (246, 246, 246), share * smooth(1.0 - 0.9 * cloudy, 2.2 - 0.9 * cloudy, clouds))

    if place == "city":
        sky = _buildings(sky, clips, u, horizon)
    canvas = sky
    if place != "sky":
        land = mix(ground_far, ground_near, depth)
        if place == "city":
            stripe = smooth(0.03, 0.01, (depth - 0.5).abs()) * smooth(0.25, 0.2, ((u * 3 + a) % 1 - 0.5).abs())
            land = mix(land, (214, 206, 190), 0.7 * stripe)
        else:
            land = land + _relief(clips, u, depth)
        canvas = sky + (land - sky) * ground
    canvas = canvas * tint
    if place == "snow":
        canvas = _snowfall(canvas, clips, u)
    high, low = canvas.amax(1, keepdim=True), canvas.amin(1, keepdim=True)
    return high - (high - canvas) * (MAX_BACKGROUND_SATURATION * high / (high - low).clamp(min=1e-3)).clamp(max=1)


def _relief(clips: Clips, u: Tensor, depth: Tensor) -> Tensor:
    """How much lighter waves, grass, ripples and drifts make the ground."""
    p, y, a, b, c, d = clips.p, clips.y, clips.a, clips.b, clips.c, clips.d
    if clips.background == "ocean":
        squeeze = 1 / (0.12 + depth)
        swell = wave(2.6 * squeeze + 0.6 * wave(u * 1.2 + b) - 1.5 * clips.chance("speed") * p + c)
        ripple = noise(u * 0.35 + 0.1 * p + a, 0.25 * squeeze + d - 0.1 * p, 1, 1.7)
        return 11 * swell * smooth(0, 0.3, depth) + 7 * ripple
    if clips.background == "meadow":
        sway = 0.02 * wave(u * 1.5 + p + c) * depth
        return 9 * noise((u + sway) * (1.5 - 0.6 * depth) + a, y * 0.35 + d, 2, 1.4)
    if clips.background == "desert":
        ripples = wave(9 * depth + 0.8 * wave(u * 0.7 + c) + d) * smooth(0.05, 0.3, depth)
        return 5 * ripples + 5 * noise(u * 0.4, y * 0.4 + d, 3, 1.8)
    return 4 * noise(u * 0.4 + a, y * 0.4, 3, 1.8)


def _buildings(sky: Tensor, clips: Clips, u: Tensor, horizon: Tensor) -> Tensor:
    y, pixel = clips.y, 1 / clips.height
    blocks = (u + clips.b) * 5
    number = blocks.floor()
    top = horizon - 0.16 - 0.3 * ((number * 12.9898 + 4.1).sin() * 43.7 % 1)
    inside = smooth(-pixel, pixel, y - top) * smooth(0.5, 0.46, (blocks % 1 - 0.5).abs())
    shade = 0.82 + 0.18 * ((number * 78.2).sin() * 15.7 % 1)
    sky = mix(sky, (150, 150, 165), inside) * (1 + inside * (shade - 1))
    windows = smooth(0.32, 0.2, (blocks * 2 % 1 - 0.5).abs()) * smooth(0.32, 0.2, (y * 11 % 1 - 0.5).abs()) * inside
    return mix(sky, mix((255, 236, 190), (205, 212, 222), clips.is_("light", "day")), 0.55 * windows)


def _snowfall(canvas: Tensor, clips: Clips, u: Tensor) -> Tensor:
    offsets = (clips.a, clips.b, clips.c)
    for layer, (cells, speed) in enumerate(((3, 0.5), (5, 0.35))):
        drift = clips.chance("wind") * clips.p + 3 * offsets[layer]
        fall = 5 * offsets[layer + 1] - speed * clips.p
        distance, _ = dots(u + drift, clips.y + fall, cells)
        canvas = mix(canvas, (250, 251, 253), 0.85 * smooth(0.024, 0.008, distance))
    return canvas
