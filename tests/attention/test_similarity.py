from itertools import product

import pytest
import torch

from timeripple.attention import reference
from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.similarity import (
    axis_correlation,
    correlation_table,
    deviation_table,
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


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("lag", [1, 2])
def test_axis_correlation_is_pearson(axis, lag):
    grid = TokenGrid(3, 4, 5, 1, 1)
    x = rows(grid, 2)
    video = grid.unflatten(x[:, grid.video]).movedim(AXES.index(axis) + 1, 1)
    first, second = video[:, :-lag].flatten(1, 3), video[:, lag:].flatten(1, 3)
    correlation = axis_correlation(x, grid, axis, lag)
    for batch, channel in product(range(2), range(3)):
        pair = torch.stack([first[batch, :, channel], second[batch, :, channel]])
        torch.testing.assert_close(correlation[batch, channel], torch.corrcoef(pair)[0, 1])


def test_axis_correlation_of_constants_is_zero_and_lags_must_fit():
    grid = TokenGrid(2, 2, 2)
    assert axis_correlation(torch.ones(8, 3), grid, "t", 1).tolist() == [0, 0, 0]
    for lag in (0, 2):
        with pytest.raises(ValueError, match=f"lag {lag} .* choose 1 to 1"):
            axis_correlation(torch.ones(8, 3), grid, "t", lag)


def planted(grid):
    """Channel 0 is constant along t, channel 1 alternates along x, channel 2 is noise."""
    torch.manual_seed(0)
    noise = torch.randn(*grid.shape, 3)
    noise[..., 0] = noise[:1, ..., 0]
    noise[..., 1] = torch.tensor([1.0, -1.0]).repeat(grid.width // 2)
    return noise.flatten(0, 2)


def test_planted_correlations_show_in_their_cells():
    grid = TokenGrid(3, 8, 8)
    columns, values = correlation_table(planted(grid), grid, (1, 2, 4))
    assert columns == [("t", 1), ("t", 2), ("y", 1), ("y", 2), ("y", 4), ("x", 1), ("x", 2), ("x", 4)]
    cells = {column: values[:, i] for i, column in enumerate(columns)}
    assert cells["t", 1][0] == pytest.approx(1) and cells["t", 2][0] == pytest.approx(1)
    assert cells["x", 1][1] == pytest.approx(-1) and cells["x", 2][1] == pytest.approx(1)
    assert cells["y", 1][0].abs() < 0.4 and all(cell[2].abs() < 0.4 for cell in cells.values())


def test_planted_deviations_show_in_their_cells():
    grid = TokenGrid(3, 8, 8)
    columns, values = deviation_table(planted(grid), grid, (2, 4))
    assert columns == [("t", 2), ("y", 2), ("y", 4), ("x", 2), ("x", 4)]
    cells = {column: values[:, i] for i, column in enumerate(columns)}
    assert cells["t", 2][0] == pytest.approx(0, abs=1e-6) and cells["x", 2][1] == pytest.approx(1)
    assert cells["y", 4][1] == pytest.approx(0, abs=1e-6) and cells["x", 4][2] > 0.3
