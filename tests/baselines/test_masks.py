"""Masks and merging against attention with explicit masks and rows, and against what their sources say."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from timeripple import disable, enable, summary
from timeripple.attention import AttentionCall, ripple_attention
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import ConfigError
from timeripple.attention.plans.tile import window_probability
from timeripple.baselines import ATTENTION, compact, rettention, svg, token_merge
from timeripple.baselines.skip import SkipConfig
from timeripple.clips.methods import parse_method

GRID = TokenGrid(4, 6, 6, text_before=1, text_after=3)
TILE = (2, 2, 2)
MASKS = ("svg", "compact", "sliding-window", "ditfastattn", "re-ttention")
STEPS = 8


def tensors(seed=0, grid=GRID, heads=2, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, heads, grid.tokens, 8, generator=generator, dtype=torch.float64)


def config_of(name, **settings):
    return ATTENTION[name](query_tile=TILE, **settings)


def coordinates(grid=GRID):
    return torch.cartesian_prod(*map(torch.arange, grid.shape))


def explicit_mask(plan, grid=GRID):
    """bool [heads, tokens, tokens] of what a plan computes."""
    mask = torch.ones(len(plan.computed), grid.tokens, grid.tokens, dtype=torch.bool)
    seen = plan.computed[:, plan.tile][:, :, plan.window]
    mask[:, grid.video, grid.video] = seen
    return mask


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("saving", [0.3, 0.6])
def test_what_is_not_seen_is_masked_out_and_counted(name, saving):
    query, key, value = tensors()
    config = config_of(name)
    output, statistics = ripple_attention(AttentionCall(query, key, value, GRID), config, saving=saving)
    mask = explicit_mask(statistics.plan)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask.view(2, 2, *mask.shape[1:]))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(statistics.saving, 1 - mask.double().mean((1, 2)).view(2, 2).mean(0))
    assert statistics.saving.mean() == pytest.approx(saving, abs=0.08) and mask[:, GRID.video].any(-1).all()


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_svg_gives_every_head_the_band_it_attends_to(kind):
    """Keys that say their frame, or their place, and queries that look for it."""
    grid = TokenGrid(8, 8, 8)
    place = coordinates(grid).double()
    code = place[:, :1] if kind == "spatial" else place[:, 1:]
    angles = (code / 8 * torch.pi).repeat_interleave(8 // code.shape[1] // 2, 1)
    vectors = torch.cat([angles.cos(), angles.sin()], -1)[None, None] * 6
    config = config_of("svg", budget=0.5)
    call = AttentionCall(vectors, vectors, vectors, grid)
    plan = config.measure(call).plan(call, 0.5)
    seen = plan.computed[0][plan.tile][:, plan.window]
    frame = place[:, 0] // 2  # of windows
    near = (
        (frame[:, None] == frame) if kind == "spatial" else ((place[:, None, 1:] // 2) == (place[:, 1:] // 2)).all(-1)
    )
    sink = (place[:, 0] < 2).expand_as(seen)  # windows that begin with the first frame
    assert seen[near].all() and seen[sink].all()
    order = {"spatial": 0, "temporal": 1}[kind]
    distance = svg.distances(grid, config, "cpu")[order]
    farthest_seen = distance.masked_fill(~plan.computed[0], -2).amax(1)
    nearest_skipped = distance.masked_fill(plan.computed[0], 1e9).amin(1)
    assert (farthest_seen <= nearest_skipped).all()


def test_ditfastattn_sees_neighbours_in_the_sequence():
    grid = TokenGrid(4, 4, 4)
    call = AttentionCall(*tensors(grid=grid), grid)
    config = config_of("ditfastattn")
    plan = config.measure(call).plan(call, 0.5)
    index = torch.arange(grid.video_tokens, dtype=torch.float64)
    middles = torch.stack([index[plan.window == w].mean() for w in range(len(plan.window_sizes))])
    for tile in range(len(plan.tile_sizes)):
        distance = (middles - index[plan.tile == tile].mean()).abs()
        seen = plan.computed[0, tile]
        assert distance[seen].max() <= distance[~seen].min() and seen.sum() == len(seen) // 2


def test_a_sliding_window_is_a_box_in_the_proportions_of_the_grid():
    grid = TokenGrid(4, 8, 16)
    call = AttentionCall(*tensors(grid=grid), grid)
    plan = config_of("sliding-window").measure(call).plan(call, 0.6)
    place = coordinates(grid).double()
    middle = {name: [place[index == n].mean(0) for n in range(int(index.max()) + 1)]
              for name, index in (("tile", plan.tile), ("window", plan.window))}  # fmt: skip
    for number, own in enumerate(middle["tile"]):
        apart = torch.stack([((own - other).abs() / torch.tensor(grid.shape)).max() for other in middle["window"]])
        seen = plan.computed[:, number]
        assert (seen == seen[0]).all() and apart[seen[0]].max() <= apart[~seen[0]].min()
        assert seen[0].sum() == plan.computed[0, 0].sum()  # as many for every tile, so borders move the box inwards


def test_compact_sees_the_same_offsets_from_every_tile():
    call = AttentionCall(*tensors(), GRID)
    config = config_of("compact")
    plan = config.measure(call).plan(call, 0.4)
    probability = window_probability(call, config)
    offset = compact.offsets(GRID, config, "cpu")
    first = {"tile": {}, "window": {}}
    place = coordinates()
    for name, index in (("tile", plan.tile), ("window", plan.window)):
        for number in range(int(index.max()) + 1):
            first[name][number] = place[index == number].amin(0)
    for one in range(len(plan.tile_sizes)):
        for two in range(len(plan.window_sizes)):
            same = (first["window"][two] - first["tile"][one]).tolist()
            others = [
                (t, w)
                for t in first["tile"]
                for w in first["window"]
                if (first["window"][w] - first["tile"][t]).tolist() == same
            ]
            assert {int(offset[t, w]) for t, w in others} == {int(offset[one, two])}
    worth = config.measure(call).thresholds
    mean = torch.stack([probability[:, offset == n].mean(1) for n in range(int(offset.max()) + 1)], 1)[:, offset]
    expected = mean.sort(-1)
    torch.testing.assert_close(worth.gather(-1, expected.indices)[..., :-1], expected.values.cumsum(-1)[..., :-1])


def test_re_ttention_scales_by_the_share_of_the_softmax():
    query, key, value = tensors()
    config = config_of("re-ttention")
    _, statistics = ripple_attention(AttentionCall(query, key, value, GRID), config, saving=0.5)
    key_mask = torch.ones(2, GRID.tokens, dtype=torch.bool)
    key_mask[1, -2:] = False
    share = rettention.softmax_share(AttentionCall(query, key, value, GRID, key_mask=key_mask), statistics.plan)
    seen = explicit_mask(statistics.plan).view(2, 2, GRID.tokens, GRID.tokens)
    weights = (query @ key.mT * 8**-0.5).masked_fill(~key_mask[:, None, None], float("-inf")).softmax(-1)
    torch.testing.assert_close(share[..., 0], (weights * seen).sum(-1), rtol=1e-5, atol=1e-5)


def test_re_ttention_is_exact_where_nothing_changes_from_step_to_step():
    query, key, value = tensors()
    run = config_of("re-ttention", theta=0.3, refresh=3).start(5)
    dense = scaled_dot_product_attention(query, key, value)
    for step in range(5):
        run.begin_forward("cond", step)
        torch.testing.assert_close(run.attention("layer", AttentionCall(query, key, value, GRID)), dense)
        run.end_forward()
    kinds = [record["kind"] for record in run.records]
    assert kinds == ["refresh", "reuse", "reuse", "refresh", "reuse"]
    assert all(min(r["saving"]) > 0 for r in run.records if r["kind"] == "reuse")


@pytest.mark.parametrize("theta", [0.0, 0.2, 0.6, 3.0])
def test_merged_tokens_share_a_row(theta):
    query, key, value = tensors()
    config = token_merge.TokenMergeConfig()
    call = AttentionCall(query, key, value, GRID)
    curve = config.measure(call)
    plan = curve.plan(call, theta)
    rows = plan.query
    assert torch.equal(rows.owner, plan.key.owner)
    video = torch.nn.functional.normalize(key[..., GRID.video, :].flatten(0, 1), dim=-1)
    windows = GRID.block_index((2, 2, 2))[0]
    for head in range(4):
        groups = rows.owner[head].bincount(minlength=int(rows.counts[head]))
        assert len(groups) == rows.counts[head] and groups.min() == 1 if theta == 0 else groups.min() >= 1
        assert torch.equal(groups, rows.sizes[head, : len(groups)])
        for row in (groups > 1).nonzero()[:, 0]:
            members = (rows.owner[head, GRID.video] == row).nonzero()[:, 0]
            hub = [m for m in members.tolist() if curve.distance[head, m] == float("inf")]
            assert len(hub) == 1  # one destination, to which all the others are near
            near = video[head, members] @ video[head, hub[0]]
            assert (1 - near <= theta + 1e-6).sum() == len(members)
    destinations = curve.distance[0].isinf().nonzero()[:, 0]
    assert sorted(windows[destinations].tolist()) == list(range(int(windows.max()) + 1))
    expected = 1 - (rows.counts.double() / GRID.tokens) ** 2
    torch.testing.assert_close(plan.saving, expected.view(2, 2).mean(0))
    torch.testing.assert_close(curve.saving(theta), plan.saving)
    output, _ = ripple_attention(call, config, theta=theta)
    for batch in range(2):
        for head in range(2):
            owner = rows.owner[2 * batch + head]
            means = torch.zeros(GRID.tokens, GRID.tokens, dtype=torch.float64)
            means[owner, torch.arange(GRID.tokens)] = 1
            sizes = means.sum(1, keepdim=True)
            means = means[: len(owner.unique())] / sizes[: len(owner.unique())]
            q, k, v = (means @ x[batch, head] for x in (query, key, value))
            logits = q @ k.T * 8**-0.5 + sizes[: len(k), 0].log()
            torch.testing.assert_close(output[batch, head], (logits.softmax(-1) @ v)[owner], rtol=1e-5, atol=1e-5)


def test_a_source_merges_into_the_destination_most_like_it():
    query, key, value = tensors()
    curve = token_merge.TokenMergeConfig().measure(AttentionCall(query, key, value, GRID))
    video = torch.nn.functional.normalize(key[..., GRID.video, :].flatten(0, 1), dim=-1)
    destinations = curve.distance[0].isinf().nonzero()[:, 0]
    best = (video @ video[:, destinations].mT).argmax(-1)
    sources = ~curve.distance.isinf()
    assert torch.equal(curve.target[sources], destinations[best][sources])


def generate(pipeline):
    generator = torch.Generator().manual_seed(0)
    sizes = {"num_frames": 13, "height": 64, "width": 64, "num_inference_steps": STEPS}
    return pipeline("a red ball", generator=generator, output_type="latent", **sizes).frames


@pytest.mark.parametrize("name", [*MASKS, "svg2", "token-merge"])
def test_in_a_pipeline(tiny_pipeline, name):
    dense = generate(tiny_pipeline)
    own = {"token-merge": {}, "svg2": {"query_cluster": 32, "key_cluster": 8}}
    settings = own.get(name, {"query_tile": (2, 4, 4)})
    enable(tiny_pipeline, ATTENTION[name](budget=0.4, **settings))
    changed = generate(tiny_pipeline)
    assert torch.equal(generate(tiny_pipeline), changed)
    numbers = summary(tiny_pipeline)
    disable(tiny_pipeline)
    assert not torch.equal(changed, dense) and torch.equal(generate(tiny_pipeline), dense)
    assert torch.nn.functional.mse_loss(changed, dense) < 0.2 * dense.var()
    assert numbers["method"].startswith(f"{name}-0.4") and numbers["saving"]["kind"] == "realised"
    assert numbers["saving"]["reuse_steps"] == pytest.approx(0.4, abs=0.08)
    assert (numbers["storage"] is not None) == (name in ("ditfastattn", "re-ttention"))


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("svg", [True, True, False], False),
        ("svg2", [True, True, False], False),
        ("token-merge", [True, False, False], False),
    ],
)
def test_recommended_windows(name, first, last):
    steps = ATTENTION[name]().schedule(STEPS)
    assert [step.kind == "dense" for step in steps[:3]] == first and (steps[-1].kind == "dense") == last


def test_channels_and_a_mask_together(tiny_pipeline):
    texts = ("channel:0.5", "skip:0.5:query_tile=2x4x4", "channel:0.5+skip:0.5:query_tile=2x4x4")
    savings, clips = [], []
    for text in texts:
        method = parse_method(text)
        with method.applied(tiny_pipeline, STEPS) as summarise:
            clips.append(generate(tiny_pipeline))
            savings.append(summarise()["saving"])
    assert len({clip.double().sum().item() for clip in clips}) == 3
    assert [saving["kind"] for saving in savings] == ["theoretical", "realised", "theoretical"]
    assert savings[2]["reuse_steps"] == pytest.approx(1 - 0.5 * 0.5, abs=0.06)


def test_a_stack_computes_what_the_mask_keeps_on_snapped_rows():
    from timeripple.attention.similarity import snap

    query, key, value = tensors()
    config = parse_method("channel:theta=0.5:ramp=0+skip:theta=0.3:query_tile=2x2x2").config
    run = config.start(4)
    run.begin_forward("cond", 1)
    output = run.attention("layer", AttentionCall(query, key, value, GRID))
    snapped = [snap(x, GRID, 0.5, ("t", "y", "x"), 2)[0] for x in (query, key)]
    mask = SkipConfig(theta=0.3, query_tile=TILE)
    expected, statistics = ripple_attention(AttentionCall(*snapped, value, GRID), mask, theta=0.3)
    torch.testing.assert_close(output, expected)
    together = torch.tensor(run.records[0]["saving"])
    assert (together > statistics.saving).all()


@pytest.mark.parametrize("text", ["token:0.5+skip:0.5", "channel:0.5+token:0.5", "skip+svg", "channel+ditfastattn"])
def test_stacks_that_do_not_fit(text):
    with pytest.raises(ConfigError, match=r"cannot be stacked|gives its error back"):
        parse_method(text)


@pytest.mark.parametrize("text", ["svg:0.5:axes=ty", "token-merge:0.5:metric=rms", "compact:2", "token-merge:x"])
def test_errors_are_one_sentence_that_names_the_value(text):
    with pytest.raises(ConfigError, match=text.split(":")[-1].split("=")[0]):
        parse_method(text)


def test_labels_name_the_method():
    assert ReuseConfig().label == "token-0.75"
    labels = [parse_method(f"{name}:0.5").label for name in ATTENTION]
    assert labels == [f"{name}-0.5" for name in ATTENTION]
