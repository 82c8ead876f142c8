"""Reading anybody's video, as a program of its own: `read_clip` and `read_metadata` of `clips.video` start it.

A file from a stranger is opened with FFmpeg's libraries (PyAV), which tell the facts of every stream as numbers, in a
process that has so much memory and so many seconds, and may end in any way without hurting the one that asked. The
only argument is a job as JSON; the answer is a line of JSON, {"shape": [F, H, W, 3]}, {"metadata": {...}} or
{"error": a sentence}, and after a shape the frames as they lie in memory.
"""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

WIDEST = 32
"""Times that a picture may be as wide as high, or as high as wide."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that see the alpha channel of WebM, which FFmpeg's own leave out."""
PQ, HLG = 16, 18
"""Transfer characteristics of HDR, as ITU-T H.273 numbers them."""
WHITE_NITS, PEAK_NITS = 203, 1000
"""Reference white (ITU-R BT.2408) and the peak that is brought down to white."""
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


class Refused(Exception):
    """The message is one sentence for who gave the file."""


def opened(path: str, container: str) -> Any:
    """The file, read as this container and nothing else, so that it cannot point to other files."""
    return av.open(path, format=container, options={"protocol_whitelist": "file"}, metadata_errors="replace")


def picture_stream(file: Any) -> Any:
    """The stream that a player shows: the default one or the first, cover pictures aside."""
    streams = [stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        what = "a cover picture and no video" if file.streams.video else "no picture"
        raise Refused(f"This file holds {what}; give one that holds a video.")
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


def check(job: dict[str, Any]) -> tuple[Fraction, Fraction]:
    """When the picture begins and how long it lasts, in seconds, by its packets and not by what the file claims; raises
    Refused, before anything is decoded, for more than the limits allow."""
    with opened(job["path"], job["container"]) as file:
        stream = picture_stream(file)
        width, height = stream.codec_context.width, stream.codec_context.height
        times, count, length = [], 0, Fraction(0)
        for packet in file.demux(stream):
            if packet.size:
                count += 1
                if (at := packet.pts if packet.pts is not None else packet.dts) is not None:
                    times.append(at * stream.time_base)
                    length = (packet.duration or 0) * stream.time_base
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    begin = min(times, default=Fraction(0))
    seconds = max(times) - begin + (length or 1 / rate) if len(times) == count else count / rate
    has, give = f"This video has frames of {width}×{height} pixels", "give one of at most"
    if max(width, height) > job["side"]:
        raise Refused(f"{has}; {give} {job['side']:,} a side.")
    if width * height > job["pixels"]:
        raise Refused(f"{has}; {give} {job['pixels']:,} pixels.")
    if seconds > job["seconds"]:
        raise Refused(f"This video is {float(seconds):.0f} seconds long; {give} {job['seconds']:g} seconds.")
    if count > 1 and count / seconds > job["rate"] * 1.01 + 1:
        raise Refused(f"This video has {round(count / seconds):,} frames a second; {give} {job['rate']:,}.")
    if count == 1:
        raise Refused("This file holds no moving picture but one frame; give a video of at least 2 frames.")
    return begin, seconds


def frames_at(job: dict[str, Any], begin: Fraction, seconds: Fraction) -> Iterator[np.ndarray]:
    """What is seen at 0, 1/fps, 2/fps, ... seconds, as uint8 [height, width, 3], as far as the picture lasts."""
    moments = [begin + Fraction(k, job["fps"]) for k in range(min(job["num_frames"], math.ceil(seconds * job["fps"])))]
    with opened(job["path"], job["container"]) as file:
        stream, latest = picture_stream(file), None
        for at, frame in decoded(file, stream, begin):
            if latest is not None and moments[0] < at:
                picture = upright(latest, stream, job["height"], job["width"])
                while moments and moments[0] < at:
                    yield picture
                    moments.pop(0)
            if not moments:
                return
            latest = frame
        if latest is not None:
            picture = upright(latest, stream, job["height"], job["width"])
            yield from [picture] * len(moments)


def decoded(file: Any, stream: Any, begin: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Frames with their times, in one thread, so that few are held; what is broken ends the video where it breaks."""
    context = stream.codec_context
    name = ALPHA_DECODERS.get(context.name)
    if name in av.codecs_available and stream.metadata.get("alpha_mode") == "1":
        context = av.CodecContext.create(name, "r")
    context.thread_count = 1
    step = 1 / (stream.average_rate or Fraction(25))
    number = 0
    try:
        for packet in file.demux(stream):
            for frame in context.decode(packet if packet.size else None):
                yield begin + number * step if frame.pts is None else frame.pts * stream.time_base, frame
                number += 1
    except MemoryError:  # which is one of FFmpeg's errors, too
        raise
    except av.error.FFmpegError:
        return


def upright(frame: Any, stream: Any, height: int, width: int) -> np.ndarray:
    """The middle of a frame as uint8 [height, width, 3]: upright, with square pixels, over white where it is
    transparent, in BT.709 where it is HDR. Raises Refused for one that is far from any usual shape."""
    turns = round(frame.rotation / 90) % 4
    size = Fraction(height, width) if turns % 2 else Fraction(width, height)
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    shape = Fraction(frame.width, frame.height) * aspect
    if not Fraction(1, WIDEST) <= shape <= WIDEST:
        raise Refused(f"The sides of this video are more than 1:{WIDEST}; give one of a usual shape.")
    is_hdr = frame.color_trc in (PQ, HLG)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    crop = round(frame.width * min(1, size / shape)), round(frame.height * min(1, shape / size))  # in its own pixels
    pixels = scaled(
        frame,
        tuple(max(1, side) for side in crop),
        (height, width) if turns % 2 else (width, height),
        "rgb48le" if is_hdr else "rgba" if has_alpha else "rgb24",
    )
    if is_hdr:
        pixels = tone_mapped(pixels / 65535, frame.color_trc)
    elif has_alpha:
        alpha = pixels[..., 3:] / 255
        pixels = np.round(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def scaled(frame: Any, crop: tuple[int, ...], size: tuple[int, int], kind: str) -> np.ndarray:
    """The middle of a frame, `crop` = width and height of it, as an array of this size and pixel format."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)),
        graph.add("crop", f"{crop[0]}:{crop[1]}:exact=1"),
        graph.add("scale", f"{size[0]}:{size[1]}:flags=area+accurate_rnd"),
        graph.add("format", kind),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def tone_mapped(signal: np.ndarray, transfer: int) -> np.ndarray:
    """HDR in BT.2020, 0 to 1, [..., 3], to uint8 in BT.709: light in nits (SMPTE ST 2084, or ITU-R BT.2100 HLG at 1000
    nits), reference white to 1, brought down by Reinhard's curve with a white point (2002, Eq. 4) on the luminance."""
    light = _pq_nits(signal) if transfer == PQ else _hlg_nits(signal)
    linear = np.maximum(light / WHITE_NITS @ BT2020_TO_BT709.T, 0)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    peak = PEAK_NITS / WHITE_NITS
    mapped = luminance * (1 + luminance / peak**2) / (1 + luminance)
    scaled = linear * (mapped / np.maximum(luminance, 1e-6))[..., None]
    return np.round(255 * np.clip(scaled, 0, 1) ** (1 / 2.4)).astype(np.uint8)


def _pq_nits(signal: np.ndarray) -> np.ndarray:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_nits(signal: np.ndarray) -> np.ndarray:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return PEAK_NITS * scene * luminance[..., None] ** 0.2


def limit_resources(seconds: int, megabytes: int) -> None:
    """Nothing here takes more processor time or memory, or writes a file; where a system has no such limits, the
    parent's time limit stays."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 1_000_000,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def answer(job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Facts, and the frames if there are any."""
    av.logging.set_level(av.logging.PANIC)
    frames: list[np.ndarray] = []
    try:
        if "num_frames" not in job:
            with opened(job["path"], job["container"]) as file:
                return {"metadata": dict(file.metadata)}, b""
        frames = list(frames_at(job, *check(job)))
    except Refused as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": f"This video takes more than {job['megabytes']:,} MB to read; give a smaller one."}, b""
    except (av.error.FFmpegError, ValueError, ArithmeticError, LookupError, TypeError) as error:
        print(repr(error), file=sys.stderr)  # what FFmpeg cannot make sense of
    if len(frames) < 2:
        return {
            "error": f"This video holds no moving picture: {len(frames)} frames could be read; give at least 2."
        }, b""
    clip = np.stack(frames)
    return {"shape": clip.shape}, clip.tobytes()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    limit_resources(asked["cpu_seconds"], asked["megabytes"])
    facts, data = answer(asked)
    sys.stdout.buffer.write(json.dumps(facts).encode() + b"\n" + data)
