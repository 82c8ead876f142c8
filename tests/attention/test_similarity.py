from itertools import product

import pytest
import torch

from timeripple.attention import reference
from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.similarity import (
    reuse_mask,
    snap,
    window_deviation,
)

GRIDS = [TokenGrid(4, 4, 4), TokenGrid(3, 5, 2, 2, 1), TokenGrid(1, 3, 7, 0, 2)]


def rows(grid, *leading, channels=3):
    torch.manual_seed(0)
    return torch.randn(*leading, grid.tokens, channels, dtype=torch.float64)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("window", [2, 3])
def test_window_deviation_is_equation_3(grid, axis, window):
    x = rows(grid, 2)
    deviation = window_deviation(x, grid, axis, window)
    dim = AXES.index(axis)
    shape = list(grid.shape)
    shape[dim] //= window
    assert deviation.shape == (2, *shape, 3)
    video = grid.unflatten(x[:, grid.video])
    for position in product(*map(range, shape)):
        source = [slice(p, p + 1) for p in position]
        source[dim] = slice(position[dim] * window, (position[dim] + 1) * window)
        a = video[(slice(None), *source)].flatten(1, 3)
        expected = ((a - a.mean(1, keepdim=True)) ** 2).mean(1).sqrt()
        torch.testing.assert_close(deviation[(slice(None), *position)], expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axes", ["t", "yx", "xt", "tyx"])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("theta", [0.0, 0.4, 0.9, 1e9])
def test_snap_is_the_written_definition(grid, axes, window, theta):
    x = rows(grid)
    snapped, mask = snap(x, grid, theta, axes, window)
    expected, expected_mask = reference.snap(x, grid, theta, axes, window)
    assert torch.equal(snapped, expected)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(mask, reuse_mask(x, grid, theta, axes, window))


def test_passes_read_what_the_previous_wrote():
    grid = TokenGrid(2, 2, 1)
    x = torch.tensor([[0.0], [10.0], [1.0], [10.5]])  # (t, y) = (0, 0), (0, 1), (1, 0), (1, 1)
    # Below 5 both pairs along t are reused, and along y the second pair (deviation 4.75), not the first (5).
    assert snap(x, grid, 5, "ty", 2)[0].flatten().tolist() == [0, 10, 0, 0]


def test_snap_leaves_its_input_and_text_alone():
    grid = TokenGrid(2, 2, 2, 3, 2)
    x = rows(grid, 1, 2)
    before = x.clone()
    snapped, mask = snap(x, grid, 1e9, AXES, 2)
    assert torch.equal(x, before)
    for text in (slice(None, grid.video.start), slice(grid.video.stop, None)):
        assert torch.equal(snapped[:, :, text], x[:, :, text])
        assert not mask[:, :, text].any()
    assert mask[:, :, grid.video].sum() == 2 * 7 * 3


def test_half_precision_is_kept_by_snap_and_widened_for_deviations():
    grid = TokenGrid(2, 2, 2)
    x = rows(grid).bfloat16()
    assert snap(x, grid, 0.5, AXES, 2)[0].dtype == torch.bfloat16
    assert window_deviation(x, grid, "t", 2).dtype == torch.float32
