"""Sparse VideoGen 2 against attention with an explicit mask, Lloyd's algorithm in loops and the authors' rule."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from timeripple.attention import AttentionCall, ripple_attention
from timeripple.attention.grid import TokenGrid
from timeripple.baselines.svg2 import Svg2Config, clustered, k_means
from timeripple.clips.methods import parse_method

GRID = TokenGrid(4, 6, 6, text_before=1, text_after=3)
CONFIG = Svg2Config(query_cluster=12, key_cluster=6)


def call_of(seed=0, key_mask=None):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 2, GRID.tokens, 8, generator=generator, dtype=torch.float64)
    return AttentionCall(query, key, value, GRID, key_mask=key_mask)


def explicit_mask(plan):
    """bool [heads, tokens, tokens] of what a plan computes."""
    mask = torch.ones(len(plan.computed), GRID.tokens, GRID.tokens, dtype=torch.bool)
    for head, (computed, query, key) in enumerate(zip(plan.computed, plan.query, plan.key, strict=True)):
        mask[head, GRID.video, GRID.video] = computed[query][:, key]
    return mask


@pytest.mark.parametrize("theta", [0.05, 0.3, 0.8, 2.0])
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_not_seen_is_masked_out_and_counted(theta, masked):
    key_mask = torch.ones(2, GRID.tokens, dtype=torch.bool)
    key_mask[1, -2:] = False
    call = call_of(key_mask=key_mask if masked else None)
    output, statistics = ripple_attention(call, CONFIG, theta=theta)
    mask = explicit_mask(statistics.plan).view(2, 2, GRID.tokens, GRID.tokens)
    seen = mask & key_mask[:, None, None] if masked else mask
    torch.testing.assert_close(output, scaled_dot_product_attention(call.query, call.key, call.value, attn_mask=seen))
    saving = 1 - mask.double().mean((2, 3)).mean(0)
    torch.testing.assert_close(statistics.saving, saving)
    torch.testing.assert_close(statistics.curve.saving(theta), saving)
    torch.testing.assert_close(statistics.curve.saving(torch.tensor([theta, 0.0]))[:, 0], saving)
    assert statistics.saving.min() > 0 and mask[..., GRID.video, GRID.video].any(-1).all()


@pytest.mark.parametrize("p", [0.5, 0.9, 1.0])
def test_clusters_are_kept_until_they_hold_p_of_the_attention(p):
    """As the authors write it: the most probable first, up to and with the one that passes p, and a tenth at least."""
    call = call_of()
    curve = clustered(call, CONFIG, None)
    plan = curve.plan(call, 1 - p)
    query, key = curve.centroids
    for head in range(4):
        for number in range(query.shape[1]):
            scores = (key[head] @ query[head, number] * 8**-0.5).exp() * curve.key_sizes[head]
            shares = (scores / scores.sum()).tolist()
            held, kept = 0.0, set()
            for rank, at in enumerate(sorted(range(len(shares)), key=lambda i: -shares[i])):
                if held <= p or rank < int(0.1 * len(shares)):
                    kept.add(at)
                held += shares[at]
            found = {*plan.computed[head, number].nonzero()[:, 0].tolist()}
            empty = {*(curve.key_sizes[head] == 0).nonzero()[:, 0].tolist()}
            assert found - empty == kept - empty


def test_k_means_is_lloyds_algorithm():
    x = call_of().video_query
    start = x[:, :5].clone()
    start[:, 4] = 100.0  # nearest to nothing
    number, centroids = k_means(x, start, 3)
    for head, rows in enumerate(x.numpy()):
        centres = start[head].numpy().copy()
        for _ in range(3):
            own = np.array([np.argmin(((row - centres) ** 2).sum(1)) for row in rows])
            centres = np.stack([rows[own == c].mean(0) if (own == c).any() else centres[c] for c in range(5)])
        np.testing.assert_array_equal(number[head], own)
        np.testing.assert_allclose(centroids[head], centres)


def test_tokens_of_one_meaning_find_each_other_wherever_they_are():
    """Four meanings, spread over the grid by chance; a query looks for keys of its own."""
    grid = TokenGrid(4, 8, 8)
    meaning = torch.randint(4, (grid.tokens,), generator=torch.Generator().manual_seed(1))
    noise = 0.1 * torch.randn(3, 1, 1, grid.tokens, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    vectors = 8 * torch.eye(4, dtype=torch.float64)[meaning] + noise
    config = Svg2Config(query_cluster=16, key_cluster=64)
    call = AttentionCall(*vectors, grid)
    # k-means of keys starts in every meaning, whatever is drawn
    start = vectors[0][0, :, :0], torch.stack([vectors[1][0, :, meaning == m][:, 0] for m in range(4)], 1)
    plan = clustered(call, config, start).plan(call, 0.1)
    same = meaning[:, None] == meaning
    assert torch.equal(plan.computed[0][plan.query[0]][:, plan.key[0]], same)
    assert plan.saving.item() == pytest.approx(1 - same.double().mean().item())


def test_k_means_goes_on_from_the_step_before_and_starts_anew_in_another_run():
    config = Svg2Config(theta=0.3, dense_first=0.0, query_cluster=12, key_cluster=6)
    for _ in range(2):
        run = config.start(3)
        for step in range(3):
            call = call_of(step)
            run.begin_forward("cond", step)
            output = run.attention("layer", call)
            run.end_forward()
            if step == 1:
                expected = clustered(call, config, None)
            elif step == 2:
                expected = clustered(call, config, expected.centroids)
        torch.testing.assert_close(output, expected.plan(call, 0.3).carry_out(call))
        torch.testing.assert_close(torch.tensor(run.records[-1]["saving"], dtype=torch.float64), expected.saving(0.3))
        rounds = [k_means(call.video_key, clustered(call_of(1), config, None).centroids[1], n) for n in (2, 50)]
        torch.testing.assert_close(run.centroids.known["layer"][1], rounds[0][1])
        assert not torch.equal(rounds[0][1], rounds[1][1])  # two rounds a step, not as many as at first
        held = 4 * 8 * (12 + 24) * 8  # heads, channels, clusters, bytes
        assert run.held_bytes >= held and run.centroids.nbytes == held


def test_the_authors_settings_are_the_defaults():
    config = parse_method("svg2").config
    assert (config.theta, config.budget, config.dense_first) == (pytest.approx(0.1), None, 0.2)
    assert (round(75_600 / config.query_cluster), round(75_600 / config.key_cluster, -1)) == (300, 990)
    tuned = parse_method("svg2:0.5:key_cluster=16").config
    assert (tuned.budget, tuned.theta, tuned.key_cluster) == (
        0.5,
        None,
        16,
    ) and tuned.label == "svg2-0.5-key_cluster=16"
