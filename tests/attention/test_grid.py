import pytest
import torch

from timeripple.attention.grid import TokenGrid


def test_video_lies_between_the_texts():
    grid = TokenGrid(2, 3, 5, text_before=4, text_after=1)
    assert grid.shape == (2, 3, 5)
    assert grid.video_tokens == 30
    assert grid.tokens == 35
    assert list(range(35))[grid.video] == list(range(4, 34))


def test_x_is_fastest_then_y_then_t():
    video = TokenGrid(2, 3, 5).unflatten(torch.arange(30).view(1, 30, 1))
    assert video[0, 1, 2, 3, 0] == (1 * 3 + 2) * 5 + 3


def test_with_text_fills_text_positions():
    assert TokenGrid(1, 1, 2, 2, 1).with_text(torch.tensor([5, 6]), -1).tolist() == [-1, -1, 5, 6, -1]


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 5, 2), (1, 1, 7)])
@pytest.mark.parametrize("block", [(2, 2, 2), (1, 2, 3), (9, 1, 4)])
def test_block_index_counts_blocks_in_grid_order(shape, block):
    index, sizes = TokenGrid(*shape).block_index(block)
    corners = [
        tuple(position // step for position, step in zip((t, y, x), block, strict=True))
        for t in range(shape[0])
        for y in range(shape[1])
        for x in range(shape[2])
    ]
    number = {corner: i for i, corner in enumerate(sorted(set(corners)))}
    assert index.tolist() == [number[corner] for corner in corners]
    assert sizes.tolist() == [corners.count(corner) for corner in sorted(number)]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 1, 1, -1), (1, 1, 1, 0, -1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one token per axis"):
        TokenGrid(*sizes)
