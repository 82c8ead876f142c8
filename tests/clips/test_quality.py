import json
import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from timeripple.clips import quality


@pytest.fixture
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(20, 235, (3, 24, 32, 3), dtype=np.uint8)


def test_psnr_of_a_constant_error(clip):
    assert quality.psnr(clip + np.uint8(5), clip) == pytest.approx(20 * math.log10(255 / 5))


def test_psnr_agrees_with_scikit_image(clip):
    other = np.random.default_rng(1).integers(0, 255, clip.shape, dtype=np.uint8)
    assert quality.psnr(other, clip) == pytest.approx(peak_signal_noise_ratio(clip, other))


def test_psnr_is_that_of_the_mean_error_not_the_mean_over_frames(clip):
    other = clip.copy()
    other[0] += 10
    assert quality.psnr(other, clip) == pytest.approx(10 * math.log10(255**2 / (100 / 3)))
    per_frame = quality.psnr_per_frame(other, clip)
    assert per_frame[0] == pytest.approx(20 * math.log10(25.5)) and np.isinf(per_frame[1:]).all()


def test_identical_clips(clip):
    assert quality.psnr(clip, clip) == math.inf
    assert quality.measure(clip, clip) == {"psnr": quality.PSNR_CAP, "ssim": pytest.approx(1)}


def test_ssim_of_constant_clips_is_the_luminance_term():
    a, b = np.full((2, 16, 16, 3), 100, np.uint8), np.full((2, 16, 16, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert quality.ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    assert quality.ssim_per_frame(a, b).shape == (2,)


def waves(noise: float = 0) -> np.ndarray:
    """A moving pattern, [4, 48, 64, 3], with Gaussian noise of this standard deviation."""
    t, y, x = np.mgrid[:4, :48, :64]
    pattern = 128 + 60 * np.sin((x + 2 * y + 3 * t)[..., None] / np.array([5, 7, 9]))
    noisy = pattern + noise * np.random.default_rng(0).standard_normal(pattern.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def test_vmaf_is_best_for_identical_clips_and_falls_with_noise():
    scores = [quality.vmaf_per_frame(waves(noise), waves()) for noise in (0, 2, 5, 10)]
    assert all(score.shape == (4,) and ((score >= 0) & (score <= 100)).all() for score in scores)
    means = [score.mean() for score in scores]
    assert means[0] > 95 and means == sorted(means, reverse=True) and means[-1] < 70


def test_vmaf_sees_which_frame_differs():
    clip = waves()
    clip[2] = waves(10)[2]
    scores = quality.vmaf_per_frame(clip, waves())
    assert scores.argmin() == 2 and (np.delete(scores, 2) > 90).all()


def test_vmaf_that_cannot_be_measured_is_one_sentence(clip, monkeypatch):
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: "false")
    with pytest.raises(OSError, match=r"^VMAF cannot be measured: ffmpeg failed\.$"):
        quality.vmaf_per_frame(clip, clip)


def test_every_measure_of_every_frame_as_reports_hold_it(clip):
    other = clip.copy()
    other[1] += 5
    frames = quality.judge(other, clip).per_frame
    assert json.loads(json.dumps(frames, allow_nan=False)) == frames
    assert frames["psnr"] == pytest.approx([quality.PSNR_CAP, 20 * math.log10(255 / 5), quality.PSNR_CAP])
    assert {name: len(values) for name, values in frames.items()} == {"psnr": 3, "ssim": 3, "vmaf": 3}


@pytest.mark.parametrize("other", [np.zeros((3, 24, 31, 3), np.uint8), np.zeros((3, 24, 32, 3), np.float32)])
def test_clips_that_cannot_be_compared(clip, other):
    for function in (quality.psnr, quality.ssim, quality.vmaf_per_frame):
        with pytest.raises(ValueError, match="cannot be compared"):
            function(clip, other)
