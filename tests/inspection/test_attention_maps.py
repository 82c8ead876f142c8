import math

import pytest
import torch

from timeripple.attention import AttentionCall, ripple_attention
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.inspection import attention_maps as maps

GRIDS = [TokenGrid(4, 4, 6), TokenGrid(3, 5, 3), TokenGrid(2, 4, 4, text_before=3), TokenGrid(3, 2, 5, text_after=2)]


def qkv(grid, heads=2, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, heads, grid.tokens, d, generator=generator)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_row_times_the_values_is_the_output(grid):
    q, k, v = qkv(grid)
    for token in (0, grid.tokens // 2, grid.tokens - 1):
        expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())[:, token]
        row = maps.attention_row(q, k, token)
        torch.testing.assert_close((row[:, None] @ v)[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("granularity", ["token", "tile"])
def test_a_reused_row_times_the_values_is_the_output_of_the_reference(grid, granularity):
    q, k, v = qkv(grid)
    config = ReuseConfig(granularity, budget=0.5, query_tile=(2, 2, 2))
    plan = maps.plan_at(q, k, grid, config)
    output, _ = ripple_attention(
        AttentionCall(q[None], k[None], v[None], grid), config, saving=0.5, backend="reference"
    )
    for token in range(grid.tokens):
        row, sharing = maps.reused_row(q, k, token, plan)
        torch.testing.assert_close((row[:, None] @ v)[:, 0], output[0, :, token], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(row.sum(-1), torch.ones(2))
        assert sharing.min() >= 1 and sharing.max() <= 8
    assert (sharing > 1).any() or granularity == "tile"


@pytest.mark.parametrize("grid", [TokenGrid(4, 4, 6), TokenGrid(3, 5, 3)])
@pytest.mark.parametrize("cells", [2, 7, 12, 256])
def test_the_averaged_map_is_the_mean_of_the_map(grid, cells):
    q, k, _ = qkv(grid)[:, 0]
    full = (q @ k.T / math.sqrt(q.shape[-1])).softmax(-1)
    cell_map, rows, columns = maps.averaged_map(q, k, grid, cells)
    assert rows.sum() == columns.sum() == grid.tokens and len(rows) <= max(cells, grid.frames)
    expected = torch.stack(
        [torch.stack([block.mean() for block in band.split(columns.tolist(), 1)]) for band in full.split(rows.tolist())]
    )
    torch.testing.assert_close(cell_map, expected)
    torch.testing.assert_close(cell_map @ columns.float(), torch.ones(len(rows)))


def test_a_part_of_the_map_is_finer():
    grid = TokenGrid(4, 4, 6)
    q, k, _ = qkv(grid)[:, 0]
    full = (q @ k.T / math.sqrt(q.shape[-1])).softmax(-1)
    part, rows, columns = maps.averaged_map(q, k, grid, cells=24, query_frame=2, key_frame=1)
    torch.testing.assert_close(part, full[48:72, 24:48])
    assert set(rows.tolist()) == set(columns.tolist()) == {1}


def test_a_few_queries_stand_for_a_cell():
    grid = TokenGrid(2, 4, 5)  # 20 tokens a frame: cells of 7, 7 and 6
    q, k, _ = qkv(grid)[:, 0]
    full = (q @ k.T / math.sqrt(q.shape[-1])).softmax(-1)
    few, rows, columns = maps.averaged_map(q, k, grid, 6, samples=3)
    assert rows.tolist() == columns.tolist() == [7, 7, 6] * 2
    taken = [[0, 3, 6], [7, 10, 13], [14, 16, 19], [20, 23, 26], [27, 30, 33], [34, 36, 39]]
    expected = [[block.mean() for block in full[each].split(columns.tolist(), 1)] for each in taken]
    torch.testing.assert_close(few, torch.tensor(expected))


def planted(grid, same):
    """q and k of which token i attends, evenly, to the tokens j with same(i, j)."""
    coordinates = torch.cartesian_prod(*map(torch.arange, grid.shape))
    allowed = same(coordinates[:, None], coordinates[None])
    key = torch.eye(grid.tokens)[None]
    query = (200.0 * allowed.float() * grid.tokens**0.5)[None]
    return query, key


def test_scores_of_planted_heads():
    grid = TokenGrid(4, 3, 5)
    by_frame = maps.head_scores(*planted(grid, lambda a, b: a[..., 0] == b[..., 0]), grid)
    assert by_frame["spatial"].item() == pytest.approx(4) and by_frame["temporal"].item() == pytest.approx(1)
    assert by_frame["entropy"].item() == pytest.approx(math.log(15) / math.log(60))
    by_place = maps.head_scores(*planted(grid, lambda a, b: (a[..., 1:] == b[..., 1:]).all(-1)), grid)
    assert by_place["spatial"].item() == pytest.approx(1) and by_place["temporal"].item() == pytest.approx(15)
    uniform = maps.head_scores(*planted(grid, lambda a, b: (a == a).all(-1) & (b == b).all(-1)), grid)
    assert all(uniform[name].item() == pytest.approx(1) for name in ("spatial", "temporal", "entropy"))
    alone = maps.head_scores(*planted(grid, lambda a, b: (a == b).all(-1)), grid)
    assert alone["entropy"].item() == pytest.approx(0, abs=1e-6) and alone["spatial"].item() == pytest.approx(4)


def test_kinds_of_heads():
    assert [maps.head_kind(3.0, 1.0), maps.head_kind(1.0, 2.0), maps.head_kind(1.2, 1.4)] == [
        "spatial",
        "temporal",
        "neither",
    ]
