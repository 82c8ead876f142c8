"""Anybody's video, with the right answer for each odd one, and the limits on what reading it may take."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from timeripple.clips import quality, video
from timeripple.clips.decode import tone_mapped
from timeripple.clips.video import ClipLimits, read_clip, write_mp4

RED, BLUE, WHITE = (252, 0, 0), (0, 0, 255), (255, 255, 255)
LIMITS = ClipLimits(4096, 8_847_360, 120, 60, 20, 1024)


def made(path, *options):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *options, str(path)], check=True)
    return path


def source(picture, seconds=1, rate=8, size="64x48"):
    return ["-f", "lavfi", "-i", f"{picture}{':' if '=' in picture else '='}s={size}:d={seconds}:r={rate}"]


def near(pixels, colour, within=4):
    return np.abs(pixels.astype(int) - colour).max() <= within


def test_the_picture_lasts_as_long_as_the_picture(tmp_path):
    """A second of picture with 90 seconds of sound is a second long."""
    for ending in ("mp4", "mkv"):
        path = made(
            tmp_path / f"own.{ending}", *source("color=red"), "-f", "lavfi", "-i", "sine=d=90", "-map", "0", "-map", "1"
        )
        assert read_clip(path, 16, 32, 32, LIMITS).shape == (16, 32, 32, 3)


def test_the_cover_is_no_video(tmp_path):
    cover = made(tmp_path / "cover.png", *source("color=blue"), "-frames:v", "1")
    both = [
        "-i",
        str(cover),
        *source("color=red"),
        "-map",
        "0",
        "-map",
        "1",
        "-c:v:0",
        "png",
        "-disposition:v:0",
        "attached_pic",
    ]
    assert near(read_clip(made(tmp_path / "own.mp4", *both), 16, 32, 32, LIMITS), RED)


def test_a_title_is_no_error(tmp_path):
    path = made(tmp_path / "own.mp4", *source("color=red"), "-metadata", "title=No such file or directory")
    assert near(read_clip(path, 16, 32, 32, LIMITS), RED)


def test_pixels_that_are_not_square_become_square(tmp_path):
    """Twice as wide pixels: 64x48 is shown as 128x48, of which the middle 48x48 are columns 20 to 44: all of one half
    of the stripes, and none of what a square reading would also see."""
    stripes = "drawbox=x=0:y=0:w=18:h=48:c=blue:t=fill,drawbox=x=46:y=0:w=18:h=48:c=blue:t=fill"
    path = made(tmp_path / "own.mkv", *source("color=red"), "-vf", f"{stripes},setsar=2", "-c:v", "ffv1")
    assert near(read_clip(path, 8, 48, 48, LIMITS), (255, 0, 0))
    path = made(tmp_path / "square.mkv", *source("color=red"), "-vf", stripes, "-c:v", "ffv1")
    assert near(read_clip(path, 8, 48, 48, LIMITS)[:, :, :8], BLUE)


@pytest.mark.parametrize(("turned", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_a_clip_from_a_telephone_is_upright(tmp_path, turned, corner):
    """Red in the upper left; turned counter-clockwise by 90 degrees it is in the lower left."""
    plain = made(tmp_path / "own.mp4", *source("color=black"), "-vf", "drawbox=x=0:y=0:w=32:h=24:c=red:t=fill")
    path = made(tmp_path / "turned.mp4", "-display_rotation", str(turned), "-i", str(plain), "-c", "copy")
    size = (64, 48) if turned != 180 else (48, 64)
    frame = read_clip(path, 8, *size, LIMITS)[0]
    corners = {(y, x): frame[y, x] for y in (0, -1) for x in (0, -1)}
    assert near(corners.pop(corner), RED, 12) and all(near(other, 0, 12) for other in corners.values())


def test_what_is_transparent_is_over_white(tmp_path):
    half = [*source("color=red"), "-vf", "format=rgba,colorchannelmixer=aa=0.5,format=yuva420p"]
    path = made(tmp_path / "own.webm", *half, "-c:v", "libvpx-vp9", "-auto-alt-ref", "0")
    assert near(read_clip(path, 8, 32, 32, LIMITS), (254, 128, 128), 6)
    blue = "format=rgba,colorchannelmixer=aa=0,drawbox=w=32:h=48:c=blue:t=fill:replace=1"
    blue += ",split[a][b];[a]palettegen[p];[b][p]paletteuse"
    frame = read_clip(made(tmp_path / "own.gif", *source("testsrc"), "-vf", blue), 8, 48, 64, LIMITS)[0]
    assert near(frame[:, :28], (0, 0, 254)) and near(frame[:, 36:], WHITE)


def test_hdr_is_brought_down(tmp_path):
    """Grey of PQ code 0.5806 is 203 nits, reference white: Reinhard's curve takes 1 to (1 + 1/4.926^2) / 2 = 0.5206."""
    expected = round(255 * 0.5206 ** (1 / 2.4))
    assert near(tone_mapped(np.full((2, 2, 3), 0.5806), 16), expected, 1)
    assert tone_mapped(np.zeros((1, 1, 3)), 16).max() == 0 == tone_mapped(np.zeros((1, 1, 3)), 18).max()
    assert tone_mapped(np.ones((1, 1, 3)), 18).min() == 255  # HLG's peak of 1000 nits is white
    x265 = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:log-level=none"
    grey = [
        "-vf",
        "format=yuv420p10le,geq=lum=572.6:cb=512:cr=512",
        "-c:v",
        "libx265",
        "-x265-params",
        x265,
    ]
    path = made(tmp_path / "own.mp4", *source("color=black"), *grey)
    assert near(read_clip(path, 8, 32, 32, LIMITS), expected, 3)


@pytest.mark.parametrize(
    ("options", "ending", "sentence"),
    [
        (
            [*source("color=red", size="22000x2"), "-c:v", "ffv1"],
            "mkv",
            "22000×2 pixels; give one of at most 4,096 a side",
        ),
        ([*source("color=red", rate=500)], "mp4", "500 frames a second; give one of at most 120"),
        ([*source("testsrc"), "-frames:v", "1"], "gif", "no moving picture but one frame"),
        (
            [*source("color=red"), "-vf", "setsar=30", "-c:v", "ffv1"],
            "mkv",
            "more than 1:32; give one of a usual shape",
        ),
        (["-f", "lavfi", "-i", "sine=d=2"], "mp4", "holds no picture"),
        ([*source("color=red", seconds=70, rate=2)], "mp4", "70 seconds long; give one of at most 60"),
    ],
)
def test_what_is_refused_is_one_sentence(tmp_path, options, ending, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_clip(made(tmp_path / f"own.{ending}", *options), 16, 64, 64, LIMITS)


def test_reading_takes_so_much_memory_and_no_more(tmp_path):
    heavy = [*source("testsrc2", size="3840x2160", rate=30, seconds=2), "-frames:v", "6"]
    path = made(tmp_path / "own.mp4", *heavy, "-c:v", "libx264", "-preset", "ultrafast")
    with pytest.raises(ValueError, match="more than 200 MB to read"):
        read_clip(path, 16, 64, 64, LIMITS._replace(megabytes=200))


def test_a_reader_that_hangs_ends(tmp_path, monkeypatch):
    program = tmp_path / "decode.py"
    program.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(video, "DECODE", program)
    write_mp4(tmp_path / "own.mp4", np.zeros((8, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="more than 1 seconds to read"):
        read_clip(tmp_path / "own.mp4", 8, 32, 32, LIMITS._replace(cpu_seconds=1))


def test_a_measure_that_hangs_ends(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    monkeypatch.setattr(quality, "VMAF_SECONDS", 0.5)
    judged = quality.judge(*np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8))
    assert judged.missing["vmaf"] == "VMAF cannot be measured: ffmpeg took longer than 1 seconds."
    assert judged.scores["psnr"] is not None
