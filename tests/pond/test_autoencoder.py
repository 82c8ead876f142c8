import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from timeripple.pond import autoencoder
from timeripple.pond.autoencoder import build_autoencoder, decode, encode, frames_at_once, moments_at_once


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return build_autoencoder().eval().requires_grad_(False)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 48), (5, 40, 32), (13, 32, 32)])
def test_all_at_once_is_frame_by_frame(vae, frames, height, width):
    """The class takes four frames at a time and keeps what its causal convolutions need; the result is the same."""
    video = torch.rand(2, 3, frames, height, width) * 2 - 1
    torch.testing.assert_close(moments_at_once(vae, video), vae.encode(video).latent_dist.parameters)
    z = torch.randn(2, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    torch.testing.assert_close(frames_at_once(vae, z).clamp(-1, 1), vae.decode(z).sample)


def test_four_frames_and_eight_by_eight_pixels_are_a_cell(vae):
    video = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    latents = encode(vae, video)
    assert latents.shape == (2, 16, 3, 4, 6)
    assert decode(vae, latents).shape == video.shape
    torch.testing.assert_close(encode(vae, video, at_once=True), latents)


def test_the_first_edition_takes_every_frame_by_itself():
    small = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=8)
    video = torch.rand(2, 3, 3, 32, 48)
    latents = encode(small, video)
    assert latents.shape == (2, 8, 3, 4, 6) and decode(small, latents).shape == video.shape
    torch.testing.assert_close(encode(small, video[:, :, 1:2]), latents[:, :, 1:2])


def test_noted_statistics_make_latents_white():
    torch.manual_seed(0)
    vae, video = build_autoencoder().eval(), torch.randint(0, 256, (12, 3, 5, 32, 32), dtype=torch.uint8)
    autoencoder.set_statistics(vae, video)
    with torch.no_grad():
        posterior = vae.encode(autoencoder.to_unit(video)).latent_dist
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    drawn = torch.cat([(posterior.sample() - mean) / std for _ in range(20)]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(drawn.mean(1), torch.zeros(16), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(1), torch.ones(16), atol=0.1, rtol=0)


def test_reconstruction_psnr_is_the_closed_form(monkeypatch):
    """An error of 0.02 on the scale of 2 is 1 % of the range: 20·log10(100) = 40 dB."""
    monkeypatch.setattr(autoencoder, "encode", lambda vae, video: video)
    monkeypatch.setattr(autoencoder, "decode", lambda vae, latents: latents + 0.02)
    clips = [torch.randint(40, 200, (5, 16, 16, 3), dtype=torch.uint8).numpy() for _ in range(3)]
    vae = SimpleNamespace(device="cpu", dtype=torch.float32)
    assert abs(autoencoder.reconstruction_psnr(vae, clips) - 40) < 1e-3


def test_the_basis_is_the_principal_components():
    """Against numpy's singular vectors of patches cut out one by one; the first frame counts four times."""
    torch.manual_seed(0)
    video = torch.randn(20, 3, 9, 16, 24).cumsum(2)
    frames = torch.cat([video[:, :, :1]] * 3 + [video], 2).double().numpy()
    cut = [
        clip[:, 4 * t : 4 * t + 4, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].ravel()
        for clip in frames
        for t, y, x in itertools.product(range(3), range(2), range(3))
    ]
    centred = np.stack(cut) - np.mean(cut, 0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    std = singular[:16] / np.sqrt(len(cut) - 1)
    basis = autoencoder.PatchBasis.fit(video)
    found = basis.project(video).movedim(1, -1).reshape(-1, 16).double().numpy()
    expected = centred @ vectors[:16].T / np.sqrt(std * std.mean())
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)


def test_the_loss_is_that_of_the_frames_given_back(vae):
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    torch.manual_seed(1)
    losses = autoencoder.loss_of(vae, video)
    mean, logvar = moments_at_once(vae, video).chunk(2, dim=1)
    torch.manual_seed(1)
    error = frames_at_once(vae, mean + torch.randn_like(mean) * (logvar / 2).exp()) - video
    torch.testing.assert_close(losses["error"], error.abs().mean() + 4 * error.square().mean())
    normal = torch.distributions.Normal(torch.zeros(1), torch.ones(1))
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    torch.testing.assert_close(losses["kl"], torch.distributions.kl_divergence(posterior, normal).mean())
