"""Reads back with OpenCV what a clip shows: colour, subject, motion, background. Never asks the model.

Subjects are the only strongly coloured things in a scene (`backgrounds.MAX_BACKGROUND_SATURATION`), so a threshold
finds them; everything else follows from the mask, its track over time, and the rest of the frame.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from timeripple.pond.prompts import SLOTS, Description
from timeripple.pond.scenes import COLOURS, render_background
from timeripple.pond.shape import largest_piece, normalised, outlines

MIN_TURN = 0.03  # mean change of a subject that stays where it is, 0 to 1, from which on it is seen to spin


@dataclass(frozen=True)
class Sighting:
    """What the judge saw; None where it found no subject."""

    colour: str | None
    subject: str | None
    motion: str | None
    background: str


def judge(frames: np.ndarray) -> Sighting:
    """Judge uint8 RGB frames [F, H, W, 3]."""
    masks = np.stack([largest_piece(frame) for frame in frames])
    background = _background(frames, masks)
    seen = masks.mean((1, 2)) > 0.003
    if seen.sum() < max(1, len(frames) // 2):
        return Sighting(None, None, None, background)
    return Sighting(_colour(frames, masks), _subject(masks[seen]), _motion(frames[seen], masks[seen]), background)


def _hue(rgb: np.ndarray) -> np.ndarray:
    """Hue in degrees of RGB values [..., 3]."""
    pixels = np.ascontiguousarray(rgb, np.float32).reshape(-1, 1, 3) / 255
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[:, 0, 0]


def _colour(frames: np.ndarray, masks: np.ndarray) -> str:
    hues = np.radians(_hue(frames[masks]))
    mean = np.degrees(np.arctan2(np.sin(hues).mean(), np.cos(hues).mean()))
    known = _hue(np.array(list(COLOURS.values())))
    distance = np.abs((known - mean + 180) % 360 - 180)
    return list(COLOURS)[distance.argmin()]


def _track(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centroid x and y in units of the frame, and area as a share of it, per frame."""
    height, width = masks.shape[1:]
    y, x = np.mgrid[0:height, 0:width]
    area = masks.sum((1, 2))
    return (masks * x).sum((1, 2)) / area / width, (masks * y).sum((1, 2)) / area / height, area / (height * width)


def _motion(frames: np.ndarray, masks: np.ndarray) -> str:
    x, y, area = _track(masks)
    end = max(1, len(area) // 8)
    growth = np.log(area[-end:].mean() / area[:end].mean())
    x_range, y_range = np.ptp(x), np.ptp(y)
    if max(x_range, y_range) < 0.2:
        if abs(growth) > 0.7:
            return "growing" if growth > 0 else "shrinking"
        return "spinning" if _turning(frames, masks) > MIN_TURN else "still"
    if min(x_range, y_range) > 0.22:
        return "circling"
    if x_range > y_range:
        return "right" if x[-1] > x[0] else "left"
    steps = np.diff(y)
    if abs(steps.sum()) < 0.75 * np.abs(steps).sum():
        return "bouncing"
    return "down" if y[-1] > y[0] else "up"


def _turning(frames: np.ndarray, masks: np.ndarray) -> float:
    """The most that a subject differs from how it was at first, moved to one place and blurred: mean over its pixels,
    0 to 1."""
    patches = []
    for frame, mask in zip(frames, masks, strict=True):
        ys, xs = np.nonzero(mask)
        scale = 20 / np.sqrt(len(xs))
        matrix = np.array([[scale, 0, 24 - scale * xs.mean()], [0, scale, 24 - scale * ys.mean()]], dtype=np.float32)
        alone = frame.astype(np.float32) * mask[..., None]
        patches.append(cv2.GaussianBlur(cv2.warpAffine(alone, matrix, (48, 48)), (0, 0), 1.0))
    changes = [np.abs(patch - patches[0]).sum() / (patch + patches[0]).sum() for patch in patches]
    return float(max(changes))


def _subject(masks: np.ndarray) -> str:
    border = masks[:, 0].any(1) | masks[:, -1].any(1) | masks[:, :, 0].any(1) | masks[:, :, -1].any(1)
    whole = masks[~border] if (~border).any() else masks
    largest = np.argsort(-whole.sum((1, 2)))[: max(1, len(whole) // 2)]
    scores = dict.fromkeys(SLOTS["subject"], 0.0)
    for mask in whole[largest]:
        shape = normalised(mask)
        for subject in scores:
            known = outlines(subject)
            scores[subject] += ((shape & known).sum((1, 2)) / (shape | known).sum((1, 2))).max()
    return max(scores, key=scores.__getitem__)


def _layout(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean colour and mean contrast of an 8×8 grid of cells, subject left out, averaged over time: [8, 8, 4]."""
    cells = []
    for frame, mask in zip(frames, masks, strict=True):
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7)), iterations=max(1, frame.shape[0] // 64)) > 0
        small = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
        keep = cv2.resize((~grown).astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)[..., None]
        contrast = np.abs(small - cv2.blur(small, (5, 5))).mean(-1, keepdims=True)
        features = np.concatenate([small, 3 * contrast], -1) * keep
        pooled = features.reshape(8, 8, 8, 8, 4).sum((1, 3)), keep.reshape(8, 8, 8, 8, 1).sum((1, 3))
        cells.append(np.concatenate(pooled, -1))
    total = np.sum(cells, 0)
    empty = total[..., 4:] < 1
    return np.where(empty, np.nan, total[..., :4] / np.maximum(total[..., 4:], 1))


@lru_cache
def _background_references() -> list[tuple[str, np.ndarray]]:
    references = []
    for background in SLOTS["background"]:
        for light in SLOTS["light"]:
            for seed in range(16):
                scene = Description(background=background, light=light, camera="static")
                frames = render_background(scene, seed, 2, 64, 64)
                references.append((background, _layout(frames, np.zeros(frames.shape[:3], bool))))
    return references


def _background(frames: np.ndarray, masks: np.ndarray) -> str:
    layout = _layout(frames[::4], masks[::4])
    distance = [np.nanmean((layout - reference) ** 2) for _, reference in _background_references()]
    return _background_references()[int(np.argmin(distance))][0]
