"""Reading and writing clips, and putting them side by side. Clips are uint8 RGB [F, H, W, 3]."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont

FPS = 16
DECODE = Path(__file__).with_name("decode.py")
WATCHABLE = 512
"""Pixels up to which small clips are enlarged."""
CAPTION_HEIGHT, CAPTION_SIZE, SEAM = 32, 16, 8
AMPLIFICATIONS = (32, 16, 8, 4, 2, 1)


def enlarge(frames: np.ndarray) -> np.ndarray:
    """Small clips 2, 3 or 4 times as large (Lanczos), as far as the longer side stays within 512 pixels."""
    height, width = frames.shape[1:3]
    factor = min(4, WATCHABLE // max(height, width))
    if factor < 2:
        return frames
    size = (width * factor, height * factor)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LANCZOS4) for frame in frames])


def side_by_side(clips: list[np.ndarray], captions: list[str]) -> np.ndarray:
    """Clips of one shape next to each other, enlarged, with a seam between them and a caption above each.

    Returns uint8 [F, H + 32, n * W + (n - 1) * 8, 3], H and W after `enlarge`. Raises ValueError if shapes differ.
    """
    if len({clip.shape for clip in clips}) != 1:
        raise ValueError(f"clips of shapes {[clip.shape for clip in clips]} do not fit side by side; give equal ones.")
    clips = [enlarge(clip) for clip in clips]
    frames, height, width, _ = clips[0].shape
    canvas = np.zeros((frames, CAPTION_HEIGHT + height, len(clips) * (width + SEAM) - SEAM, 3), np.uint8)
    for index, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        columns = slice(index * (width + SEAM), index * (width + SEAM) + width)
        canvas[:, :CAPTION_HEIGHT, columns] = _caption(caption, width)
        canvas[:, CAPTION_HEIGHT:, columns] = clip
    return canvas


def amplification(clip: np.ndarray, reference: np.ndarray) -> int:
    """The largest of `AMPLIFICATIONS` at which at most 1 % of the values of `amplified_difference` are cut off."""
    largest = np.percentile(amplified_difference(clip, reference, 1), 99)
    return next((factor for factor in AMPLIFICATIONS if factor * largest <= 255), 1)


def amplified_difference(clip: np.ndarray, reference: np.ndarray, factor: int) -> np.ndarray:
    """min(255, factor * |clip - reference|) of each value: black where equal; uint8 [F, H, W, 3] all three."""
    difference = np.abs(clip.astype(np.int16) - reference)
    return np.minimum(255, factor * difference).astype(np.uint8)


def signed_difference(clip: np.ndarray, reference: np.ndarray, factor: int) -> np.ndarray:
    """128 + factor / 2 * (clip - reference) of each value, cut off at 0 and 255; uint8 [F, H, W, 3] all three."""
    difference = clip.astype(np.int16) - reference
    return np.clip(128 + factor * difference / 2, 0, 255).round().astype(np.uint8)


def player_frames(clips: Sequence[np.ndarray], factor: int) -> np.ndarray:
    """What a player shows of n clips, of which the first is the reference: the clips, then `signed_difference` of each
    other one from it, all enlarged and next to each other.

    Returns uint8 [F, H, (2 n - 1) * (W + 16), 3], H and W after `enlarge`: each picture has its outer columns repeated
    8 times on both sides, so that coding does not let one bleed into the next.
    """
    reference, *others = clips
    panels = [enlarge(panel) for panel in (*clips, *(signed_difference(clip, reference, factor) for clip in others))]
    sides = ((0, 0), (0, 0), (SEAM, SEAM), (0, 0))
    return np.concatenate([np.pad(panel, sides, mode="edge") for panel in panels], axis=2)


def _caption(text: str, width: int) -> np.ndarray:
    """White on black, uint8 [32, width, 3]; text that is too wide is set smaller."""
    image = Image.new("RGB", (width, CAPTION_HEIGHT))
    draw = ImageDraw.Draw(image)
    fitting = (f for f in map(ImageFont.load_default, range(CAPTION_SIZE, 6, -1)) if draw.textlength(text, f) <= width)
    font = next(fitting, ImageFont.load_default(7))
    draw.text((width / 2, CAPTION_HEIGHT / 2), text, fill="white", font=font, anchor="mm")
    return np.asarray(image)


def write_mp4(path: str | Path, frames: np.ndarray, fps: int = FPS, metadata: dict[str, Any] | None = None) -> None:
    """Write H.264, yuv420p, that every browser plays and scrubs (faststart, a key frame every second).

    Small clips are enlarged (`enlarge`); odd sizes are made even by repeating the last row or column. `metadata` is
    kept as JSON in the file's comment. Raises OSError, one sentence, and leaves no file behind if writing fails.
    """
    frames = enlarge(frames)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
            file.metadata.update({"comment": json.dumps(metadata)} if metadata else {})
            stream: Any = file.add_stream("libx264", fps, options={"crf": "16", "g": str(fps)}, pix_fmt="yuv420p")
            coder = stream.codec_context
            coder.height, coder.width = frames.shape[1:3]
            coder.color_primaries = coder.color_trc = coder.colorspace = Colorspace.ITU709
            coder.color_range = ColorRange.MPEG
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                file.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
            file.mux(stream.encode())
    except av.error.FFmpegError as error:
        if Path(path).is_file():
            Path(path).unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `write_mp4` kept as metadata. Raises ValueError, one sentence, for a file that holds none."""
    try:
        facts, _ = _ask({"path": str(path), "container": "mov"}, ClipLimits())
        metadata = json.loads(facts["metadata"]["comment"])
    except (ValueError, LookupError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError("This file holds no settings; give an mp4 that TimeRipple wrote.")
    return metadata


class ClipLimits(NamedTuple):
    """What a stranger's video may be, and take: pixels of the longer side and of a frame, frames a second and seconds,
    known before anything is decoded; seconds of processor time, of which the clock may show three times as many, and
    megabytes of memory."""

    side: int = 8192
    pixels: int = 8192 * 4320
    rate: int = 240
    seconds: int = 600
    cpu_seconds: int = 60
    megabytes: int = 4096


CONTAINERS = {  # what a file of this format holds at its start, as (offset, bytes), and the reader that may open it
    "mov": (4, b"ftyp"),
    "matroska": (0, b"\x1a\x45\xdf\xa3"),
    "avi": (8, b"AVI "),
    "gif": (0, b"GIF8"),
}


def read_clip(
    path: str | Path, num_frames: int, height: int, width: int, limits: ClipLimits | None = None
) -> np.ndarray:
    """The beginning of anybody's video at 16 frames a second, cropped to the middle: uint8 [F, height, width, 3].

    F is num_frames, or fewer, but at least 2, where the video is shorter. Only MP4, WebM, MKV, AVI and GIF are opened,
    by what is in the file, so that no playlist can point elsewhere, in a process of its own, see `clips.decode`. Raises
    ValueError, one sentence, for files that are no such video or over the limits.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}; give a video file."
        ) from None
    container = next((name for name, (at, mark) in CONTAINERS.items() if head[at : at + len(mark)] == mark), None)
    if container is None:
        raise ValueError("This file is no video that can be read; give an MP4, WebM, MKV, AVI or GIF file.")
    wanted = {"path": str(path), "container": container, "num_frames": num_frames}
    wanted |= {"height": height, "width": width, "fps": FPS}
    facts, data = _ask(wanted, limits or ClipLimits())
    return np.frombuffer(data, np.uint8).reshape(facts["shape"]).copy()


def _ask(job: dict[str, Any], limits: ClipLimits) -> tuple[dict[str, Any], bytes]:
    """What `clips.decode` answers. Raises ValueError, one sentence."""
    command = [sys.executable, "-P", str(DECODE), json.dumps(job | limits._asdict())]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        result = subprocess.run(
            command, capture_output=True, timeout=3 * limits.cpu_seconds, env=os.environ | one_thread
        )
        ended = -result.returncode
    except subprocess.TimeoutExpired:
        ended = signal.SIGXCPU
    if ended in (signal.SIGXCPU, signal.SIGKILL):
        raise ValueError(f"This video takes more than {limits.cpu_seconds} seconds to read; give a smaller one.")
    line, _, data = result.stdout.partition(b"\n")
    if ended or not line:
        raise ValueError(f"This video is broken, or takes more than {limits.megabytes:,} MB to read; give another one.")
    facts = json.loads(line)
    if "error" in facts:
        raise ValueError(facts["error"])
    return facts, data


def count_frames(path: str | Path, most: int) -> int:
    """How many frames `read_clip` finds in a video, at most `most`. Raises ValueError, one sentence."""
    return len(read_clip(path, most, 32, 32))


def read_mp4(path: str | Path) -> np.ndarray:
    """Frames of a video file of ours, uint8 [F, H, W, 3]. Raises OSError, one sentence, if it cannot be read."""
    try:
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    except (av.error.FFmpegError, LookupError, ValueError):  # no picture stream, or no frame in it
        raise OSError(f"{path} cannot be read as a video.") from None
