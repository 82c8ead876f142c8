import errno
import json
import re
import subprocess

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from timeripple.clips.quality import psnr
from timeripple.clips.video import (
    AMPLIFICATIONS,
    FPS,
    ClipLimits,
    amplification,
    amplified_difference,
    enlarge,
    player_frames,
    read_clip,
    read_metadata,
    read_mp4,
    side_by_side,
    signed_difference,
    write_mp4,
)


def smooth_clip(frames: int = 10, height: int = 128, width: int = 160) -> np.ndarray:
    t, y, x = np.mgrid[:frames, :height, :width] / np.array([frames, height, width]).reshape(3, 1, 1, 1)
    return (255 * np.stack([x, y, (t + x) / 2], axis=-1)).astype(np.uint8)


def read_with_opencv(path) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (result := capture.read())[0]:
        frames.append(result[1][..., ::-1])
    return np.stack(frames)


def probe(path) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "ffmetadata", "-"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stderr + result.stdout


def test_round_trip_through_both_readers(tmp_path):
    clip = smooth_clip()
    write_mp4(tmp_path / "clip.mp4", clip)
    for frames in (read_mp4(tmp_path / "clip.mp4"), read_with_opencv(tmp_path / "clip.mp4")):
        assert frames.shape == (10, 384, 480, 3)
        assert psnr(frames, enlarge(clip)) > 38


def test_codec_colours_rate_and_faststart(tmp_path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, smooth_clip(), metadata={"prompt": 'a "red" ball; = #\n', "seed": 3})
    text = probe(path)
    assert re.search(r"Video: h264 .*yuv420p\(tv, bt709", text) and f"{FPS} fps" in text
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    comment = re.search(rb'{"prompt.*?}', data)[0]
    assert json.loads(comment) == {"prompt": 'a "red" ball; = #\n', "seed": 3}


@pytest.mark.parametrize("text", ['a "red" ball; = #\n', "back\\slash", "ünï: 'x' <b>", "=;#\n\n;comment=no"])
def test_metadata_comes_back_as_it_was(tmp_path, text):
    write_mp4(tmp_path / "clip.mp4", smooth_clip(2), metadata={"prompt": text, "seed": 3})
    assert read_metadata(tmp_path / "clip.mp4") == {"prompt": text, "seed": 3}


def test_files_without_settings(tmp_path):
    write_mp4(tmp_path / "clip.mp4", smooth_clip(2))
    (tmp_path / "text.mp4").write_text("comment={}")
    for name in ("clip.mp4", "text.mp4"):
        with pytest.raises(ValueError, match="holds no settings; give an mp4 that TimeRipple wrote"):
            read_metadata(tmp_path / name)


def test_odd_sizes_become_even(tmp_path):
    write_mp4(tmp_path / "odd.mp4", smooth_clip(2, 301, 299))
    assert read_mp4(tmp_path / "odd.mp4").shape == (2, 302, 300, 3)


@pytest.mark.parametrize(("size", "factor"), [(32, 4), (128, 4), (192, 2), (256, 2), (320, 1), (1024, 1)])
def test_enlarge(size, factor):
    assert enlarge(np.zeros((1, size, 32, 3), np.uint8)).shape == (1, size * factor, 32 * factor, 3)


def test_side_by_side_keeps_the_clips_and_writes_captions():
    left, right = np.full((2, 64, 64, 3), 40, np.uint8), np.full((2, 64, 64, 3), 200, np.uint8)
    frames = side_by_side([left, right], ["dense · 1.0 s", "a caption far too long for the width of a clip " * 2])
    assert frames.shape == (2, 32 + 256, 256 + 8 + 256, 3)
    assert (frames[:, 32:, :256] == 40).all() and (frames[:, 32:, 264:] == 200).all()
    assert frames[:, :32, :256].max() > 200 and frames[:, :32, 264:].max() > 200
    assert (frames[:, :, 256:264] == 0).all()


def test_side_by_side_of_unequal_clips():
    with pytest.raises(ValueError, match="do not fit side by side"):
        side_by_side([np.zeros((1, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8)], ["a", "b"])


def test_amplified_difference_is_that_of_plain_numbers():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
    for factor in (1, 8):
        expected = [min(255, factor * abs(int(x) - int(y))) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
        for pair in ((a, b), (b, a)):
            assert amplified_difference(*pair, factor).ravel().tolist() == expected


@pytest.mark.parametrize(
    ("error", "factor"), [(0, 32), (7, 32), (8, 16), (31, 8), (63, 4), (127, 2), (128, 1), (255, 1)]
)
def test_differences_are_amplified_as_far_as_they_fit(error, factor):
    reference, clip = np.zeros((2, 1, 10, 20, 3), np.uint8)
    clip[..., :] = error
    assert factor in AMPLIFICATIONS and amplification(clip, reference) == factor
    clip[:] = 3
    clip[0, 0, :1] = 255  # half a percent of all values may be cut off
    assert amplification(clip, reference) == 32


def test_frames_of_the_player():
    levels = (40, 50, 36)
    frames = player_frames([np.full((2, 64, 48, 3), level, np.uint8) for level in levels], 16)
    assert frames.shape == (2, 256, 5 * (192 + 16), 3)
    for number, level in enumerate((*levels, 128 + 8 * 10, 128 - 8 * 4)):
        assert (frames[:, :, number * 208 : (number + 1) * 208] == level).all()


def test_signed_differences_are_cut_off_at_both_ends():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
    expected = [min(255, max(0, 128 + 4 * (int(x) - int(y)))) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    assert signed_difference(a, b, 8).ravel().tolist() == expected


def test_full_disk():
    with pytest.raises(OSError, match="No space left on device") as error:
        write_mp4("/dev/full", smooth_clip(2))
    assert error.value.errno == errno.ENOSPC


def test_unwritable_path_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No such file or directory"):
        write_mp4(tmp_path / "missing" / "clip.mp4", smooth_clip(2))
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_video(tmp_path):
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(OSError, match="cannot be read as a video"):
        read_mp4(tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.mkv", "clip.avi", "clip.gif", "clip.txt"])
def test_anybodys_clip_is_read_whatever_its_name(tmp_path, name):
    """Written at 16 frames a second and 160x128; read at 8, as a square from the middle."""
    codecs = {"webm": ["libvpx"], "gif": ["gif"], "avi": ["mpeg4", "-q:v", "2"]}
    ending = name.split(".")[1]
    written = tmp_path / ("clip.mp4" if ending == "txt" else name)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-y",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        "160x128",
        "-r",
        "32",
    ]
    command += ["-i", "-", "-c:v", *codecs.get(ending, ["libx264", "-crf", "12"]), str(written)]
    clip = smooth_clip(20)
    assert subprocess.run(command, input=clip.tobytes(), capture_output=True).returncode == 0
    frames = read_clip(written.rename(tmp_path / name), 8, 64, 64)
    assert frames.shape == (8, 64, 64, 3)
    expected = np.stack([cv2.resize(frame[:, 16:144], (64, 64), interpolation=cv2.INTER_AREA) for frame in clip[::2]])
    assert psnr(frames, expected[:8]) > 25
    assert len(read_clip(tmp_path / name, 40, 64, 64)) in (10, 11)


def hostile(tmp_path, name):
    path = tmp_path / "upload.mp4"
    if name == "long":
        write_mp4(path, np.zeros((10 * FPS, 32, 32, 3), np.uint8))
    elif name == "large":
        write_mp4(path, np.zeros((2, 600, 800, 3), np.uint8))
    elif name == "one frame":
        write_mp4(path, smooth_clip(1))
    elif name == "cut off":
        write_mp4(path, smooth_clip(8))
        path.write_bytes(path.read_bytes()[:900])
    else:
        path.write_bytes(name.encode())
    return path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "no video that can be read"),
        ("<html><script>alert(1)</script></html>", "no video that can be read"),
        ("#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\n/etc/passwd\n", "no video that can be read"),
        ("ffconcat version 1.0\nfile /etc/passwd\n", "no video that can be read"),
        ("\0\0\0 ftypisom" + "nonsense" * 100, "0 frames could be read"),
        ("cut off", "0 frames could be read"),
        ("one frame", "no moving picture but one frame"),
        ("long", "is 10 seconds long; give one of at most 5"),
        ("large", "frames of 800×600 pixels; give one of at most 200,000"),
    ],
)
def test_what_is_no_clip_is_one_sentence(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_clip(hostile(tmp_path, name), 16, 64, 64, ClipLimits(pixels=200_000, seconds=5))
