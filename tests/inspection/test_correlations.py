from itertools import product

import pytest
import torch

from timeripple.attention.grid import AXES, TokenGrid
from timeripple.inspection.correlations import axis_correlation, correlation_table, deviation_table


def rows(grid, *leading, channels=3):
    torch.manual_seed(0)
    return torch.randn(*leading, grid.tokens, channels, dtype=torch.float64)


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
