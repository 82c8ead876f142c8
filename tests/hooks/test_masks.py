"""Masks of text are read, and what is no mask of text is refused."""

import pytest
import torch

from timeripple.attention.grid import TokenGrid
from timeripple.hooks.masks import read_mask

GRID = TokenGrid(1, 2, 2, text_before=1, text_after=2)
HIDES_LAST = torch.tensor([1, 1, 1, 1, 1, 1, 0]).bool()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, None),
        (torch.ones(1, 1, 1, 7, dtype=torch.bool), None),
        (torch.zeros(1, 1, 7, 7), None),
        (HIDES_LAST.view(1, 1, 1, 7), HIDES_LAST),
        (torch.where(HIDES_LAST, 0.0, -10_000.0).expand(2, 2, 1, 7), HIDES_LAST),
        ((HIDES_LAST & HIDES_LAST[:, None]).view(1, 1, 7, 7), HIDES_LAST),
    ],
)
def test_masks_that_hide_text_keys_are_read(mask, expected):
    found = read_mask(mask, 2, GRID)
    assert found is None if expected is None else torch.equal(found, expected.expand(2, 7))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.full((1, 1, 1, 7), -0.5), "weighs"),
        (torch.ones(7, 7).tril().bool().view(1, 1, 7, 7), "differs between video tokens"),
        (torch.stack([HIDES_LAST, ~HIDES_LAST]).view(1, 2, 1, 7), "heads"),
        (~HIDES_LAST.view(1, 1, 1, 7), "hides video"),
        (torch.ones(7, 7).index_fill(0, torch.tensor([0]), 0).bool().view(1, 1, 7, 7), "text and video"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(mask, reason):
    with pytest.raises(ValueError, match=reason):
        read_mask(mask, 1, GRID)
