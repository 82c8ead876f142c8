import pytest
import torch

from timeripple.attention import AttentionCall
from timeripple.attention.grid import TokenGrid

GRID = TokenGrid(2, 3, 2, text_before=1, text_after=2)


def tensors(tokens=GRID.tokens):
    return tuple(torch.randn(2, 3, tokens, 4) for _ in range(3))


def seen(hidden=()):
    mask = torch.ones(2, GRID.tokens, dtype=torch.bool)
    mask[1, list(hidden)] = False
    return mask


def test_sizes_and_scale():
    call = AttentionCall(*tensors(), GRID)
    assert (call.batch, call.heads, call.head_dim) == (2, 3, 4)
    assert call.logit_scale == 0.5 and AttentionCall(*tensors(), GRID, scale=0.3).logit_scale == 0.3


def test_video_tokens_are_those_of_the_grid_in_float32():
    query, key, value = tensors()
    call = AttentionCall(query.bfloat16(), key, value, GRID)
    assert call.video_query.dtype == torch.float32 and call.video_query.shape == (6, 12, 4)
    assert torch.equal(call.video_query[4], query.bfloat16()[1, 1, 1:13].float())
    assert torch.equal(call.video_key[2], key[0, 2, 1:13])


def test_a_mask_that_hides_nothing_is_none():
    assert AttentionCall(*tensors(), GRID, key_mask=seen()).key_mask is None
    assert torch.equal(AttentionCall(*tensors(), GRID, key_mask=seen([0, 14])).key_mask, seen([0, 14]))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_rows_that_do_not_fit_the_grid(name):
    given = dict(zip(("query", "key", "value"), tensors(), strict=True)) | {name: tensors(14)[0]}
    with pytest.raises(
        ValueError, match=rf"{name} of shape \(2, 3, 14, 4\) does not fit .* give \[batch, heads, 15, d\]"
    ):
        AttentionCall(**given, grid=GRID)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (seen([3]), "hides video tokens"),
        (seen()[:1], r"shape \(1, 15\) and torch.bool does not fit; give bool \[2, 15\]"),
        (seen().float(), r"torch.float32 does not fit"),
    ],
)
def test_masks_that_cannot_work(mask, message):
    with pytest.raises(ValueError, match=message):
        AttentionCall(*tensors(), GRID, key_mask=mask)
