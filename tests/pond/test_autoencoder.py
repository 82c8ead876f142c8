import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from timeripple.pond import autoencoder
from timeripple.pond.autoencoder import build_autoencoder, decode, encode
from timeripple.pond.components import Middle, PatchBasis, around, look_around, patches, write_components
from timeripple.pond.train_autoencoder import draw_cells, loss_of


@pytest.fixture(scope="module")
def video():
    """Smooth clips, frames in [-1, 1], [40, 3, 9, 32, 24]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(40, 3, 5, 10, 8, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(9, 32, 24), mode="trilinear")


@pytest.fixture(scope="module")
def basis(video):
    return PatchBasis.fit(patches(video))


@pytest.fixture
def vae(basis):
    torch.manual_seed(0)
    vae = build_autoencoder().eval().requires_grad_(False)
    write_components(vae, basis)
    return vae


def cut(clips):
    """Patches cut out one by one, the first frame four times: float64 [clips · 3 · 4 · 3, 768] and where each is."""
    frames = torch.cat([clips[:, :, :1]] * 3 + [clips], 2).double().numpy()
    places = list(itertools.product(range(len(clips)), range(3), range(4), range(3)))
    cut_out = [frames[b, :, 4 * t : 4 * t + 4, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].ravel() for b, t, y, x in places]
    return np.stack(cut_out), places


def put_back(flat, places, count):
    frames = np.zeros((count, 3, 12, 32, 24))
    for patch, (b, t, y, x) in zip(flat, places, strict=True):
        frames[b, :, 4 * t : 4 * t + 4, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = patch.reshape(3, 4, 8, 8)
    return frames[:, :, 3:]


def test_it_starts_as_principal_components(vae, video):
    """Against numpy's singular vectors of patches cut out one by one: latents up to sign, and frames."""
    seen, places = cut(video)
    mean = seen.mean(0)
    _, singular, vectors = np.linalg.svd(seen - mean, full_matrices=False)
    std = singular[:16] / np.sqrt(len(seen))
    latents = vae.encode(video).latent_dist.mode().movedim(1, -1).reshape(-1, 16).double().numpy()
    expected = (seen - mean) @ vectors[:16].T / np.sqrt(std * std.mean())
    np.testing.assert_allclose(np.abs(latents), np.abs(expected), atol=2e-3)
    given_back = (seen - mean) @ vectors[:16].T @ vectors[:16] + mean
    decoded = vae.decode(vae.encode(video[:4]).latent_dist.mode()).sample
    np.testing.assert_allclose(decoded.numpy(), put_back(given_back, places, 40)[:4], atol=1e-3)


def test_half_precision_keeps_the_components(vae, video):
    expected = vae.decode(vae.encode(video[:2]).latent_dist.mode()).sample
    for dtype in (torch.float16, torch.bfloat16):
        half = vae.to(dtype)
        decoded = half.decode(half.encode(video[:2].to(dtype)).latent_dist.mode()).sample.float()
        assert -10 * ((decoded - expected) / 2).pow(2).mean().log10() > 45


def test_the_basis_can_be_read_from_an_autoencoder(vae, basis):
    for written, read in zip(vars(basis).values(), vars(PatchBasis.of(vae)).values(), strict=True):
        torch.testing.assert_close(read, written)


def test_looking_around_is_least_squares(vae, basis, video):
    """Of all coefficients from latents of 3×3×3 cells, the current frame's last, zeros outside, the first frame before
    itself; gathered one by one here, solved in float64."""
    coefficients = basis.project(patches(video))
    look_around(vae, [coefficients[:15], coefficients[15:]])
    z = np.pad(coefficients[:, :16].double().numpy(), [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1)])
    rows, wanted = [], []
    for b, t, y, x in itertools.product(range(40), range(3), range(4), range(3)):
        near = z[b][:, [max(t - 2, 0), max(t - 1, 0), t], y : y + 3, x : x + 3]
        rows.append(np.append(near.ravel(), 1.0))
        wanted.append(coefficients[b, :, t, y, x].double().numpy())
    rows, wanted = np.stack(rows), np.stack(wanted)
    ridge = 1e-3 * np.eye(rows.shape[1])
    weights = np.linalg.solve(rows.T @ rows / len(rows) + ridge, rows.T @ wanted / len(rows))
    found = vae.decoder.conv_in(coefficients[:, :16]).movedim(1, -1).reshape(-1, 192).numpy()
    np.testing.assert_allclose(found, rows @ weights, atol=5e-3)


def test_the_middle_is_the_class_own(vae):
    """After any training of the matrices, in whose memory they are."""
    middle, z = Middle(vae), torch.randn(2, 16, 4, 3, 5)
    with torch.no_grad():
        for parameter in middle.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        hidden = vae.decoder.mid_block(vae.decoder.conv_in(z))
        torch.testing.assert_close(middle(around(z)).movedim(-1, 1), hidden, atol=1e-4, rtol=1e-4)
        assert hidden.std() > 0.01
        assert vae.decode(z).sample.isfinite().all()


def test_the_loss_is_the_error_of_pixels(vae, basis, video, monkeypatch):
    """Of cells drawn each with a weight of its own; not of first frames, of which three in four are not decoded."""
    monkeypatch.setattr("timeripple.pond.train_autoencoder.NOISE", 0.0)
    coefficients = basis.project(patches(video[:3]))
    decoded = vae.decode(coefficients[:, :16]).sample
    within = (coefficients / basis.scale.view(-1, 1, 1, 1)).movedim(1, -1) @ basis.components + basis.mean
    squared = (within - patches(decoded))[:, 1:].pow(2).mean(-1).flatten()
    weight = torch.rand(len(squared)) + 0.5
    seen = around(coefficients[:, :16])[:, 1:].flatten(0, 3)
    loss = loss_of(Middle(vae), seen, coefficients.movedim(1, -1)[:, 1:].flatten(0, 3), weight, basis.scale)
    torch.testing.assert_close(loss.detach(), (squared * weight).sum() / weight.sum(), atol=1e-5, rtol=1e-3)


def test_drawn_cells_stand_for_all(basis, video):
    """Weighted by one over their probability, they have the mean of all; they are fewer, and harder."""
    torch.manual_seed(0)
    coefficients = basis.project(patches(video)) * torch.linspace(0.01, 2, 40).pow(3).view(-1, 1, 1, 1, 1)
    everything = coefficients.movedim(1, -1).flatten(0, 3)
    drawn = [draw_cells(coefficients, basis.scale) for _ in range(60)]
    seen, wanted, weight = (torch.cat(parts).float() for parts in zip(*drawn, strict=True))
    assert len(wanted) / 60 < 0.6 * len(everything)
    energy = wanted.pow(2).sum(1)
    estimate = (energy * weight).sum() / 60 / len(everything)
    torch.testing.assert_close(estimate, everything.pow(2).sum(1).mean(), rtol=0.02, atol=0)
    assert energy.mean() > 1.3 * everything.pow(2).sum(1).mean()
    torch.testing.assert_close(seen[:, 2 * 9 + 4 :: 27], wanted[:, :16])  # the middle of the last frame, per channel


def test_four_frames_and_eight_by_eight_pixels_are_a_cell(vae, video):
    latents = encode(vae, video[:2])
    assert latents.shape == (2, 16, 3, 4, 3)
    assert decode(vae, latents).shape == (2, 3, 9, 32, 24)


def test_what_comes_later_changes_nothing_before(vae):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in Middle(vae).parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    one = torch.rand(1, 3, 13, 32, 32)
    other = torch.cat([one[:, :, :5], torch.rand(1, 3, 8, 32, 32)], 2)
    latents, others = encode(vae, one), encode(vae, other)
    torch.testing.assert_close(latents[:, :, :2], others[:, :, :2])
    torch.testing.assert_close(decode(vae, latents)[:, :, :5], decode(vae, others)[:, :, :5])


def test_noted_statistics_centre_latents_and_give_them_one_scale(vae, video):
    """Each channel's mean is 0; the mean of the variances is 1; their ratios stay as they were."""
    raw = vae.encode(video).latent_dist.mode().transpose(0, 1).flatten(1)
    autoencoder.set_statistics(vae, video)
    latents = encode(vae, video).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.var(1).mean(), torch.tensor(1.0), atol=1e-2, rtol=0)
    torch.testing.assert_close(latents.std(1) / latents.std(1)[0], raw.std(1) / raw.std(1)[0])


def test_reconstruction_psnr_is_the_closed_form(monkeypatch):
    """An error of 0.02 on the scale of 2 is 1 % of the range: 20·log10(100) = 40 dB."""
    monkeypatch.setattr(autoencoder, "encode", lambda vae, video: video)
    monkeypatch.setattr(autoencoder, "decode", lambda vae, latents: latents + 0.02)
    clips = [torch.randint(40, 200, (5, 16, 16, 3), dtype=torch.uint8).numpy() for _ in range(3)]
    vae = SimpleNamespace(device="cpu", dtype=torch.float32)
    assert abs(autoencoder.reconstruction_psnr(vae, clips) - 40) < 1e-3
