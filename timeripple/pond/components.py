"""The principal components of patches of pixels, and an autoencoder that computes them exactly."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from timeripple.pond.autoencoder import HIDDEN, LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR

COLOURS = 12  # of a frame's 2×2 pixels, which the class takes for channels at its ends
BLOCK = COLOURS * 8  # values of 2 frames of 4×4 pixels, the channels between its two changes of resolution
PATCH = BLOCK * 8
RIDGE = 1e-3
LEVEL = 512.0  # of constant channels: many times what others reach


@dataclass(frozen=True)
class PatchBasis:
    """The first principal components of 4×8×8 RGB patches: 16 are the latents, all of them what the decoder works with.

    mean: [768]; components: [192, 768], unit rows; scale: [192], brings coefficients halfway to unit variance, so that
    what varies most still does.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, seen: Tensor) -> "PatchBasis":
        """Fit to patches [..., 768]."""
        seen = seen.flatten(0, -2)
        mean = seen.mean(0)
        variance, vectors = torch.linalg.eigh(((seen - mean).T @ (seen - mean)).double() / len(seen))
        std = variance.flip(0)[:HIDDEN].clamp(min=1e-6).sqrt()
        scale = (std * std[:LATENT_CHANNELS].mean()).rsqrt().float()
        return cls(mean, vectors.flip(1).T[:HIDDEN].float().contiguous(), scale)

    def project(self, seen: Tensor) -> Tensor:
        """Patches [B, n, h, w, 768] to coefficients [B, 192, n, h, w]."""
        return ((seen - self.mean) @ self.components.T * self.scale).movedim(-1, 1)

    @classmethod
    def of(cls, vae: AutoencoderKLLTXVideo) -> "PatchBasis":
        """The basis that was written into an autoencoder."""
        weights, bias = _centre(_readout(vae)).detach(), _readout(vae).get_parameter("bias").detach()
        rows = _as_patches(weights.T)
        norms = rows.norm(dim=1)
        return cls(_as_patches(bias[None])[0], rows / norms[:, None], 1 / norms)


def patches(video: Tensor) -> Tensor:
    """Frames [B, 3, 4n + 1, H, W], the first of them four times, as patches [B, n + 1, H/8, W/8, 768]."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, TEMPORAL_FACTOR - 1, -1, -1), video], 2)
    video = video.unflatten(4, (-1, SPATIAL_FACTOR)).unflatten(3, (-1, SPATIAL_FACTOR))
    return video.unflatten(2, (-1, TEMPORAL_FACTOR)).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _as_channels(patches: Tensor) -> Tensor:
    """Patches [n, 768] as the class folds them to channels, pixels first, then halves: [n, 96, 2, 2, 2] with the outer
    halves along t, y, x last."""
    colour, t_outer, t, y_outer, y, y_pixel, x_outer, x, x_pixel = range(1, 10)
    halves = patches.view(len(patches), 3, *[2] * 8)
    folded = halves.permute(0, colour, x_pixel, y_pixel, t, y, x, t_outer, y_outer, x_outer)
    return folded.reshape(len(patches), BLOCK, 2, 2, 2)


def _as_patches(channels: Tensor) -> Tensor:
    """The other way round: [n, 768] to patches [n, 768]."""
    order = _as_channels(torch.arange(PATCH)[None]).flatten()
    return channels[:, order.argsort().to(channels.device)]


@torch.no_grad()
def write_components(vae: AutoencoderKLLTXVideo, basis: PatchBasis) -> None:
    """Make an untrained autoencoder give a patch's first 16 coefficients, and of them the patch again.

    The decoder's middle has a channel for each component, of which only the latents' own are not yet zero; its blocks
    look at one cell at a time, and add nothing yet. What is left of the class is made linear: channels come in pairs,
    as silu(a) - silu(-a) = a, and next to constants many times their size the norm before is one factor for all.
    """
    scale = basis.scale.view(-1, 1, 1, 1, 1)
    components, mean = _as_channels(basis.components), _as_channels(basis.mean[None])[0]
    encoder, decoder, n = vae.encoder, vae.decoder, LATENT_CHANNELS

    fold, halve = encoder.down_blocks[0].downsamplers[0].conv.conv, encoder.down_blocks[1].downsamplers[0].conv
    _clear(encoder.conv_in.conv, fold, halve, encoder.conv_out.conv)
    _centre(encoder.conv_in.conv)[:COLOURS] = torch.eye(COLOURS)  # then `fold` alone: its shortcut moves pixels
    latents = (components * scale)[:n]
    halve.weight[: 2 * n, :BLOCK, 1:, 1:, 1:] = torch.cat([latents, -latents])
    offset = -(latents * mean).sum((1, 2, 3, 4))
    halve.bias.copy_(torch.cat([offset, -offset, halve.bias.new_full((halve.out_channels - 2 * n,), LEVEL)]))
    _give_back_differences(encoder.conv_out.conv, n)
    encoder.conv_out.conv.bias[n] = -30.0  # log-variance: the posterior is its mean

    for block in decoder.mid_block.resnets:
        alone = _centre(block.conv1.conv).clone()
        torch.nn.init.kaiming_uniform_(alone, a=5**0.5)
        _clear(block.conv1.conv, block.conv2.conv)
        _centre(block.conv1.conv).copy_(alone)
    second = decoder.up_blocks[1].upsamplers[0].conv.conv
    _clear(decoder.conv_in.conv, _readout(vae), second, decoder.conv_out.conv)
    _centre(decoder.conv_in.conv)[:n] = torch.eye(n)
    _centre(_readout(vae)).copy_((components / scale).flatten(1).T)
    _readout(vae).get_parameter("bias").copy_(mean.flatten())
    _centre(second)[: 2 * BLOCK] = torch.cat([torch.eye(BLOCK), -torch.eye(BLOCK)])
    second.bias[2 * BLOCK :] = LEVEL
    _give_back_differences(decoder.conv_out.conv, COLOURS)


def around(z: Tensor) -> Tensor:
    """Latents [B, 16, n, h, w] of 3×3×3 cells, the middle of the last frame being each cell's own: [B, n, h, w, 432].

    The first frame counts as its own past, and zeros are around: as the class has it.
    """
    padded = F.pad(torch.cat([z[:, :, :1], z[:, :, :1], z], 2), (1, 1, 1, 1))
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1).movedim(1, 4).flatten(4)


@torch.no_grad()
def look_around(vae: AutoencoderKLLTXVideo, examples: list[Tensor]) -> None:
    """Make the decoder's first convolution the best linear guess of all coefficients from the latents of a cell and of
    those around and before it: least squares over examples, coefficients [B, 192, n, h, w] each."""
    size = 27 * LATENT_CHANNELS + 1
    gram, moments = examples[0].new_zeros(size, size), examples[0].new_zeros(size, HIDDEN)
    for coefficients in examples:
        seen = F.pad(around(coefficients[:, :LATENT_CHANNELS]).flatten(0, 3), (0, 1), value=1.0)
        gram += seen.T @ seen
        moments += seen.T @ coefficients.movedim(1, -1).flatten(0, 3)
    gram, moments = gram / gram[-1, -1], moments / gram[-1, -1]  # which counts the cells
    weights = torch.linalg.solve(gram + RIDGE * torch.eye(size, device=gram.device), moments)
    convolution = vae.decoder.conv_in.conv
    convolution.weight.copy_(weights[:-1].T.unflatten(1, (LATENT_CHANNELS, 3, 3, 3)))
    convolution.bias.copy_(weights[-1])


class Middle(torch.nn.Module):
    """The decoder's middle as matrices that share an autoencoder's weights, as long as its blocks look at one cell at a
    time: latents around cells, [..., 432], to the cells' coefficients, [..., 192]."""

    def __init__(self, vae: AutoencoderKLLTXVideo):
        super().__init__()
        first, self.blocks = vae.decoder.conv_in.conv, [*vae.decoder.mid_block.resnets]
        convolutions = [convolution.conv for block in self.blocks for convolution in (block.conv1, block.conv2)]
        matrices = [first.weight.data.flatten(1), *(_centre(convolution).data for convolution in convolutions)]
        self.matrices = torch.nn.ParameterList(matrices)
        self.biases = torch.nn.ParameterList(
            [first.bias.data, *(convolution.bias.data for convolution in convolutions)]
        )

    def forward(self, seen: Tensor) -> Tensor:
        first, *rest = zip(self.matrices, self.biases, strict=True)
        hidden = F.linear(seen, *first)
        for block, one, two in zip(self.blocks, rest[::2], rest[1::2], strict=True):
            hidden = hidden + F.linear(F.silu(block.norm2(F.linear(F.silu(block.norm1(hidden)), *one))), *two)
        return hidden


def _readout(vae: AutoencoderKLLTXVideo) -> torch.nn.Conv3d:
    """The convolution that makes pixels of coefficients."""
    return vae.decoder.up_blocks[0].upsamplers[0].conv.conv


def _clear(*convolutions: torch.nn.Conv3d) -> None:
    for convolution in convolutions:
        for parameter in convolution.parameters():
            parameter.zero_()


def _centre(convolution: torch.nn.Conv3d) -> Tensor:
    """The weights of the place itself, [out, in], of a 3×3×3 convolution that is causal along time."""
    return convolution.weight[:, :, -1, 1, 1]


def _give_back_differences(convolution: torch.nn.Conv3d, n: int) -> None:
    """Of channels a, -a and constants, normed and through silu, give back the n of a."""
    constants = convolution.in_channels - 2 * n
    factor = LEVEL * (constants / convolution.in_channels) ** 0.5
    _centre(convolution)[:n, : 2 * n] = factor * torch.cat([torch.eye(n), -torch.eye(n)], 1)
