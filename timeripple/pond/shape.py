"""How well a subject keeps its shape, seen in pixels: outline, wholeness, steadiness and sharpness of its border."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch

from timeripple.pond.scenes import subject_distance

MIN_SATURATION, MIN_CHROMA = 0.53, 60
TEMPLATE = 48  # height and width of masks that are compared
TURNS = 36  # orientations tried
SMALL_HOLE = 0.1  # of the outline's area: gloss and eyes leave holes, and only a ring has a real one
SMALL_PIECE = 0.03  # of the largest piece's area: what is smaller is noise
BORDER = 6  # pixels to either side, in which its width is measured


@dataclass(frozen=True)
class Shape:
    """Of a subject in a clip; None where it is never seen whole.

    outline: intersection over union with the best-fitting outline of its kind, mean over frames.
    one_piece: share of frames in which it is one connected piece.
    steady: relative standard deviation of its area over frames.
    edge: width of its border in pixels, from a fifth to four fifths of the way from inside to outside.
    """

    outline: float | None
    one_piece: float
    steady: float | None
    edge: float | None


def measure_shape(frames: np.ndarray, subject: str) -> Shape:
    """Measure uint8 RGB frames [F, H, W, 3] in which a subject of this kind should be seen."""
    masks = [whole_mask(frame) for frame in frames]
    inside = [(frame, mask) for frame, mask in zip(frames, masks, strict=True) if mask.any() and not _cut_off(mask)]
    areas = [mask.sum() for _, mask in inside]
    edges = [width for frame, mask in inside if (width := _edge_width(frame, mask)) is not None]
    return Shape(
        outline=float(np.mean([_best_overlap(mask, subject) for _, mask in inside])) if inside else None,
        one_piece=float(np.mean([_pieces(frame) == 1 for frame in frames])),
        steady=float(np.std(areas) / np.mean(areas)) if len(areas) > 1 else None,
        edge=float(np.mean(edges)) if edges else None,
    )


def vivid(frame: np.ndarray) -> np.ndarray:
    """Where a uint8 RGB frame [H, W, 3] is as strongly coloured as only subjects are, uint8 0 or 1 [H, W]."""
    high, low = frame.max(-1).astype(np.float32), frame.min(-1).astype(np.float32)
    return ((high - low > MIN_SATURATION * high) & (high - low > MIN_CHROMA)).astype(np.uint8)


def largest_piece(frame: np.ndarray) -> np.ndarray:
    """The largest strongly coloured region of a uint8 RGB frame [H, W, 3], as bool [H, W]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(vivid(frame), connectivity=8)
    if count == 1:
        return np.zeros(frame.shape[:2], bool)
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def whole_mask(frame: np.ndarray) -> np.ndarray:
    """The largest strongly coloured region with its small holes filled, bool [H, W]."""
    mask = largest_piece(frame)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    holes = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < SMALL_HOLE * mask.sum()]
    return mask | np.isin(labels, holes)


def _pieces(frame: np.ndarray) -> int:
    count, _, stats, _ = cv2.connectedComponentsWithStats(vivid(frame), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int((areas >= SMALL_PIECE * areas.max()).sum()) if count > 1 else 0


def _cut_off(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


@lru_cache
def outlines(subject: str, turns: int = TURNS) -> np.ndarray:
    """Silhouettes of a kind at all orientations, normalised, bool [turns (twice that for fish), 48, 48]."""
    axis = torch.linspace(-1.5, 1.5, 192)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    found = []
    for mirror in (1, -1) if subject == "fish" else (1,):
        for turn in torch.arange(turns) * (2 * torch.pi / turns):
            px, py = mirror * (turn.cos() * x + turn.sin() * y), turn.cos() * y - turn.sin() * x
            found.append(normalised((subject_distance(subject, px, py) < 0).numpy()))
    return np.stack(found)


def normalised(mask: np.ndarray) -> np.ndarray:
    """A mask moved to its centroid and scaled to one area, bool [48, 48]."""
    ys, xs = np.nonzero(mask)
    scale = 0.45 * TEMPLATE / np.sqrt(len(xs))
    shift = np.array([TEMPLATE / 2 - scale * xs.mean(), TEMPLATE / 2 - scale * ys.mean()])
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], dtype=np.float32)
    return cv2.warpAffine(mask.astype(np.float32), matrix, (TEMPLATE, TEMPLATE), flags=cv2.INTER_LINEAR) > 0.5


def _best_overlap(mask: np.ndarray, subject: str) -> float:
    shape, known = normalised(mask), outlines(subject)
    return float(((shape & known).sum((1, 2)) / (shape | known).sum((1, 2))).max())


def _edge_width(frame: np.ndarray, mask: np.ndarray) -> float | None:
    """Pixels over which the mean profile across the border goes from 0.8 to 0.2, None where it does not."""
    inner = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    outer = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    distance = np.where(mask, 0.5 - inner, outer - 0.5)  # negative inside
    steps = np.arange(-BORDER, BORDER + 1)
    at = [np.abs(distance - step) <= 0.5 for step in steps]
    if not all(place.any() for place in at):
        return None
    profile = np.array([frame[place].astype(np.float64).mean(0) for place in at])
    direction = profile[0] - profile[-1]
    along = np.minimum.accumulate((profile - profile[-1]) @ direction / (direction @ direction))
    start, end = (float(np.interp(-level, -along, steps)) for level in (0.8, 0.2))
    return end - start
