"""Reads back with OpenCV what a clip shows: colour, subject, motion, background. Never asks the model.

Subjects are the only strongly coloured things in a scene (`scenes.MAX_BACKGROUND_SATURATION`), so a threshold finds
them; everything else follows from the mask, its track over time, and the rest of the frame.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from timeripple.pond.prompts import SLOTS, Description
from timeripple.pond.scenes import COLOURS, render_background, subject_distance

MIN_SATURATION, MIN_CHROMA = 0.53, 60
TEMPLATE = 48


@dataclass(frozen=True)
class Sighting:
    """What the judge saw; None where it found no subject."""

    colour: str | None
    subject: str | None
    motion: str | None
    background: str


def judge(frames: np.ndarray) -> Sighting:
    """Judge uint8 RGB frames [F, H, W, 3]."""
    masks = np.stack([subject_mask(frame) for frame in frames])
    background = _background(frames, masks)
    seen = masks.mean((1, 2)) > 0.003
    if seen.sum() < max(1, len(frames) // 2):
        return Sighting(None, None, None, background)
    return Sighting(_colour(frames, masks), _subject(masks[seen]), _motion(masks[seen]), background)


def subject_mask(frame: np.ndarray) -> np.ndarray:
    """The largest strongly coloured region of a uint8 RGB frame [H, W, 3], as bool [H, W]."""
    high, low = frame.max(-1).astype(np.float32), frame.min(-1).astype(np.float32)
    vivid = ((high - low > MIN_SATURATION * high) & (high - low > MIN_CHROMA)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(vivid, connectivity=8)
    if count == 1:
        return np.zeros(vivid.shape, bool)
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


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


def _motion(masks: np.ndarray) -> str:
    x, y, area = _track(masks)
    end = max(1, len(area) // 8)
    growth = np.log(area[-end:].mean() / area[:end].mean())
    x_range, y_range = np.ptp(x), np.ptp(y)
    if max(x_range, y_range) < 0.2:
        return "growing" if growth > 0.7 else "shrinking" if growth < -0.7 else "still"
    if min(x_range, y_range) > 0.22:
        return "circling"
    if x_range > y_range:
        return "right" if x[-1] > x[0] else "left"
    steps = np.diff(y)
    if abs(steps.sum()) < 0.75 * np.abs(steps).sum():
        return "bouncing"
    return "down" if y[-1] > y[0] else "up"


@lru_cache
def _templates() -> dict[str, np.ndarray]:
    """Silhouettes normalised as `_normalised` does; fish look either way."""
    y, x = np.mgrid[-1.5:1.5:192j, -1.5:1.5:192j]
    shapes = {subject: subject_distance(subject, x, y) < 0 for subject in SLOTS["subject"]}
    shapes["fish, mirrored"] = shapes["fish"][:, ::-1]
    return {name: _normalised(mask) for name, mask in shapes.items()}


def _normalised(mask: np.ndarray) -> np.ndarray:
    """A mask moved to its centroid and scaled to one area, bool [48, 48]."""
    ys, xs = np.nonzero(mask)
    scale = 0.45 * TEMPLATE / np.sqrt(len(xs))
    shift = np.array([TEMPLATE / 2 - scale * xs.mean(), TEMPLATE / 2 - scale * ys.mean()])
    matrix = np.float32([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return cv2.warpAffine(mask.astype(np.float32), matrix, (TEMPLATE, TEMPLATE), flags=cv2.INTER_LINEAR) > 0.5


def _subject(masks: np.ndarray) -> str:
    border = masks[:, 0].any(1) | masks[:, -1].any(1) | masks[:, :, 0].any(1) | masks[:, :, -1].any(1)
    whole = masks[~border] if (~border).any() else masks
    largest = np.argsort(-whole.sum((1, 2)))[: max(1, len(whole) // 2)]
    scores = dict.fromkeys(SLOTS["subject"], 0.0)
    for mask in whole[largest]:
        shape = _normalised(mask)
        for name, template in _templates().items():
            overlap = (shape & template).sum() / (shape | template).sum()
            subject = name.split(",")[0]
            scores[subject] = max(scores[subject], overlap) if name != subject else scores[subject] + overlap
    return max(scores, key=scores.get)


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
            for seed in range(6):
                scene = Description(background=background, light=light, camera="static")
                frames = render_background(scene, seed, 2, 64, 64)
                references.append((background, _layout(frames, np.zeros(frames.shape[:3], bool))))
    return references


def _background(frames: np.ndarray, masks: np.ndarray) -> str:
    layout = _layout(frames[::4], masks[::4])
    distance = [np.nanmean((layout - reference) ** 2) for _, reference in _background_references()]
    return _background_references()[int(np.argmin(distance))][0]
