"""How close two clips are: PSNR, SSIM and VMAF of raw frames, never of coded video; whether a clip shows anything."""

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from skimage.metrics import structural_similarity

from timeripple.clips.video import enlarge

PSNR_CAP = 100.0
"""What reports show for identical clips, whose PSNR is infinite, which JSON cannot say."""
ONE_COLOUR = 2
"""Levels of 255 within which the values of a channel are one colour."""
VMAF_SECONDS = 60
"""How long measuring VMAF may take, and a second more for every million pixels."""


@dataclass(frozen=True)
class Quality:
    """A clip against the reference, by "psnr", "ssim" and "vmaf", None for what could not be measured.

    scores: of the whole clip, PSNR in dB, at most `PSNR_CAP`; per_frame: of each frame; missing: why, by metric.
    """

    scores: dict[str, float | None]
    per_frame: dict[str, list[float] | None]
    missing: dict[str, str]


def judge(clip: np.ndarray, reference: np.ndarray) -> Quality:
    """Every metric of a clip, uint8 [F, H, W, 3] like the reference. One that fails is left out, with the reason."""
    whole: dict[str, Callable[[np.ndarray], float]] = {"psnr": lambda _: min(psnr(clip, reference), PSNR_CAP)}
    quality = Quality({}, {}, {})
    for name, frames in (("psnr", psnr_per_frame), ("ssim", ssim_per_frame), ("vmaf", vmaf_per_frame)):
        try:
            values = frames(clip, reference)
            quality.scores[name] = float(whole.get(name, np.mean)(values))
            quality.per_frame[name] = np.minimum(values, PSNR_CAP).tolist()
        except Exception as error:  # whatever keeps a metric from being measured, the clips are there
            quality.scores[name] = quality.per_frame[name] = None
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            named = reason if name.upper() in reason else f"{name.upper()} cannot be measured: {reason}"
            quality.missing[name] = named.removesuffix(".") + "."
    return quality


def frames_of_one_colour(clip: np.ndarray) -> np.ndarray:
    """Which frames of a clip, uint8 [F, H, W, 3], show one colour and nothing else: bool [F]."""
    pixels = clip.reshape(len(clip), -1, clip.shape[-1])
    return (np.ptp(pixels, axis=1) <= ONE_COLOUR).all(axis=1)


def flaw(clip: np.ndarray) -> str | None:
    """One clause on frames that show nothing, such as "all 16 frames are black"; None where there are none."""
    empty = frames_of_one_colour(clip)
    if not empty.any():
        return None
    colour = "black" if clip[empty].max() <= ONE_COLOUR else "one colour"
    number = f"all {len(clip)}" if empty.all() else f"{empty.sum()} of {len(clip)}"
    return f"{number} frames are {colour}"


def psnr_per_frame(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """PSNR in dB of each frame, [F] float64, inf where identical; clips are uint8 [F, H, W, 3]."""
    error = _difference(clip, reference) ** 2
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))


def psnr(clip: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB from the mean squared error over the whole clip, inf if identical; clips are uint8 [F, H, W, 3]."""
    error = (_difference(clip, reference) ** 2).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim_per_frame(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM of each frame as Wang et al. (2004) define it (Gaussian window, sigma 1.5), mean over channels, [F]."""
    _difference(clip, reference)
    return np.array(
        [
            structural_similarity(
                a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for a, b in zip(clip, reference, strict=True)
        ]
    )


def ssim(clip: np.ndarray, reference: np.ndarray) -> float:
    """Mean SSIM over the frames; clips are uint8 [F, H, W, 3] of at least 11x11 pixels."""
    return float(ssim_per_frame(clip, reference).mean())


def vmaf_per_frame(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """VMAF of each frame, 0 to 100, by libvmaf's default model (v0.6.1), [F] float64; clips are uint8 [F, H, W, 3].

    Small clips are enlarged first, as they are shown. Raises OSError, one sentence, if ffmpeg cannot measure, and
    ValueError for clips with frames of one colour: VMAF compares textures, and gives 97 for black against white.
    """
    _difference(clip, reference)
    if frames_of_one_colour(clip).any() or frames_of_one_colour(reference).any():
        raise ValueError("VMAF says nothing of frames that show one colour.")
    clips = {"clip.rgb": enlarge(clip), "reference.rgb": enlarge(reference)}
    height, width = clips["clip.rgb"].shape[1:3]
    command = [ffmpeg(), "-loglevel", "error"]
    for name in clips:
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", name]
    luma = "scale=out_color_matrix=bt709:out_range=tv,format=yuv444p"
    graph = f"[0]{luma}[clip];[1]{luma}[reference];[clip][reference]libvmaf=log_fmt=json:log_path=vmaf.json"
    with tempfile.TemporaryDirectory(prefix="timeripple-") as folder:
        for name, frames in clips.items():
            (Path(folder) / name).write_bytes(frames.tobytes())
        command += ["-lavfi", graph, "-f", "null", "-"]
        seconds = VMAF_SECONDS + clips["clip.rgb"].size / 3e6
        try:
            result = subprocess.run(command, capture_output=True, timeout=seconds, cwd=folder)
        except subprocess.TimeoutExpired:
            raise OSError(f"VMAF cannot be measured: ffmpeg took longer than {seconds:.0f} seconds.") from None
        if result.returncode:
            reason = result.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
            raise OSError(f"VMAF cannot be measured: {reason or 'ffmpeg failed'}.")
        log = json.loads((Path(folder) / "vmaf.json").read_text(encoding="utf-8"))
    return np.array([frame["metrics"]["vmaf"] for frame in log["frames"]])


def ffmpeg() -> str:
    """A program with libvmaf. Raises OSError, one sentence, where there is none."""
    try:
        program = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        program = None
    if program is None:
        raise OSError(
            "VMAF cannot be measured: there is no ffmpeg; install imageio-ffmpeg anew or set IMAGEIO_FFMPEG_EXE."
        )
    return program


def measure(clip: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """`{"psnr", "ssim"}` as reports hold them: PSNR in dB, at most `PSNR_CAP`. Quick, so without VMAF."""
    return {"psnr": min(psnr(clip, reference), PSNR_CAP), "ssim": ssim(clip, reference)}


def _difference(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """float64 [F, H, W, 3]; raises ValueError for clips that cannot be compared."""
    if clip.shape != reference.shape or clip.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(
            f"clips of {clip.dtype} {clip.shape} and {reference.dtype} {reference.shape} cannot be compared; "
            "give two of uint8 and of one shape."
        )
    return clip.astype(np.float64) - reference
