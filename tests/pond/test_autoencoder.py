import torch

from timeripple.pond.autoencoder import build_autoencoder, decode, encode, random_batch, reconstruction_psnr


class Exact:
    """An autoencoder that changes every pixel by exactly `offset`."""

    def __init__(self, offset):
        self.config = type("Config", (), {"scaling_factor": 2.0})
        self.encode = lambda frames: type("Output", (), {"latents": frames})
        self.decode = lambda latents: type("Output", (), {"sample": latents + offset})


def test_shapes():
    vae, frames = build_autoencoder(), torch.rand(2, 3, 32, 48) * 2 - 1
    latents = encode(vae, frames)
    assert latents.shape == (2, 8, 4, 6)
    assert decode(vae, latents).shape == frames.shape


def test_reconstruction_psnr_is_the_closed_form():
    """An error of 0.02 on the scale of 2 is 1 % of the range: 20·log10(100) = 40 dB."""
    frames = torch.rand(20, 3, 16, 16) - 0.5
    assert abs(reconstruction_psnr(Exact(0.02), frames) - 40) < 1e-3


def test_batches_are_crops_and_whole_frames():
    large = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    small = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    batch = random_batch((large, small), 8)
    assert batch.shape == (8, 3, 64, 64) and batch.min() >= -1 and batch.max() <= 1
    assert (batch[6:] == -1).all() and (batch[:6].std((1, 2, 3)) > 0.4).all()
