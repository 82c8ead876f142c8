"""What is put into a model stays in, is copied with it, and comes out whole, whatever happens to it in between."""

import copy
import gc
import io
import pickle
import weakref

import accelerate
import diffusers
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from tests.hooks.pipelines import WAN, build, generate, model
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import ConfigError
from timeripple.baselines import STEP_CACHES
from timeripple.clips.methods import parse_method
from timeripple.hooks.masks import read_mask
from timeripple.hooks.processor import ReuseProcessor

TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)


@pytest.fixture
def built():
    return build("wan", "unipc")


def traces(transformer):
    """Everything that is on a transformer beside what it was made of."""
    return [
        (name, what)
        for name, module in transformer.named_modules()
        for what in (
            *(key for key in vars(module) if key in ("forward", "_old_forward", "_hf_hook", "_diffusers_hook")),
            *("hook" for _ in (*module._forward_pre_hooks, *module._forward_hooks)),
            *("processor" for _ in [0] if isinstance(getattr(module, "processor", None), ReuseProcessor)),
        )
    ]


@pytest.mark.parametrize("order", ["offload, enable", "enable, offload"])
def test_model_offloading(built, order, monkeypatch):
    """What `enable_model_cpu_offload` does, which itself refuses a machine without an accelerator: after every run all
    hooks of accelerate are removed and put on again."""
    pipe, inputs = built
    dense = generate(pipe, inputs)

    def offload(**_):
        pipe._all_hooks = []
        for part in (pipe.transformer, pipe.vae):
            remove_hook_from_module(part, recurse=True)
            pipe._all_hooks.append(accelerate.cpu_offload_with_hook(part, torch.device("cpu"))[1])

    monkeypatch.setattr(pipe, "enable_model_cpu_offload", offload, raising=False)
    for step in order.split(", "):
        offload() if step == "offload" else enable(pipe, TOKEN)
    first, of_first = generate(pipe, inputs), summary(pipe)
    assert not torch.equal(first, dense)
    for _ in range(2):
        assert torch.equal(generate(pipe, inputs), first)
        records = summary(pipe)["records"]
        assert records is not of_first["records"] and len(records) == len(of_first["records"])
    disable(pipe)
    assert {what for _, what in traces(pipe.transformer)} <= {"forward", "_old_forward", "_hf_hook", "_diffusers_hook"}
    assert hasattr(pipe.transformer, "_hf_hook")  # accelerate's own stays
    assert torch.equal(generate(pipe, inputs), dense)


def test_offloading_that_ends_while_enabled(built):
    pipe, inputs = built
    dense = generate(pipe, inputs)
    accelerate.cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    remove_hook_from_module(pipe.transformer, recurse=True)
    assert torch.equal(generate(pipe, inputs), reused) and not torch.equal(reused, dense)
    disable(pipe)
    assert torch.equal(generate(pipe, inputs), dense)


def test_nothing_is_left_on_the_model(built):
    pipe, inputs = built
    before = traces(pipe.transformer)
    enable(pipe, TOKEN)
    generate(pipe, inputs)
    disable(pipe)
    assert traces(pipe.transformer) == before == []


def test_a_copied_pipeline_has_weights_and_a_clock_of_its_own(built):
    pipe, inputs = built
    dense = generate(pipe, inputs)
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    twin = copy.deepcopy(pipe)
    for parameter in twin.transformer.parameters():
        parameter.zero_()
    assert generate(twin, inputs).std() != reused.std() and torch.equal(generate(pipe, inputs), reused)
    twin = copy.deepcopy(pipe)
    assert torch.equal(generate(twin, inputs), reused)
    assert len(summary(twin)["records"]) == len(summary(pipe)["records"]) > 0
    disable(twin)
    assert traces(twin.transformer) == [] and torch.equal(generate(twin, inputs), dense)
    assert torch.equal(generate(pipe, inputs), reused)


def test_a_copied_transformer_is_enabled_and_nobodys(built):
    pipe, inputs = built
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    twin = copy.deepcopy(pipe.transformer)
    other, _ = build("wan", "unipc")
    other.register_modules(transformer=twin)
    assert torch.equal(generate(other, inputs), reused)  # this pipeline tells the step
    disable(other)
    assert traces(twin) == [] and torch.equal(generate(pipe, inputs), reused)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_an_enabled_model_is_pickled_without_its_run(built, how):
    pipe, inputs = built
    dense = generate(pipe, inputs)
    plain = len(pickle.dumps(pipe.transformer))
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    file = io.BytesIO()
    (pickle.dump if how == "pickle" else torch.save)(pipe.transformer, file)
    file.seek(0)
    loaded = pickle.load(file) if how == "pickle" else torch.load(file, weights_only=False)
    if how == "pickle":
        assert file.tell() < 1.5 * plain
    pipe.register_modules(transformer=loaded)
    assert torch.equal(generate(pipe, inputs), reused)
    disable(pipe)
    assert traces(loaded) == [] and torch.equal(generate(pipe, inputs), dense)


def test_weights_are_saved_under_their_names(built, tmp_path):
    pipe, _ = built
    names = [*pipe.transformer.state_dict()]
    enable(pipe, TOKEN)
    assert [*pipe.transformer.state_dict()] == names
    pipe.transformer.save_pretrained(tmp_path)
    again = diffusers.WanTransformer3DModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pipe.transformer.parameters(), strict=True))


def test_a_pipeline_may_go_while_its_transformer_stays(built):
    pipe, inputs = build("wan", "unipc")
    enable(pipe, TOKEN)
    generate(pipe, inputs)
    gone, transformer = weakref.ref(pipe), pipe.transformer
    del pipe
    gc.collect()
    assert gone() is None
    built[0].register_modules(transformer=transformer)
    generate(*built)
    assert summary(transformer)["saving"]["reuse_steps"] > 0


def test_one_module_may_be_both_experts():
    pipe, inputs = build("wan_two_experts", "unipc")
    pipe.register_modules(transformer_2=pipe.transformer)
    dense = generate(pipe, inputs)
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    numbers = summary(pipe)
    assert numbers["layers"] == 2 and len(numbers["records"]) == 4 * 2 * 2 and not torch.equal(reused, dense)
    disable(pipe)
    assert traces(pipe.transformer) == [] and torch.equal(generate(pipe, inputs), dense)


@pytest.mark.parametrize("then", ["set_attn_processor", "set_attention_backend", "fuse_qkv_projections"])
def test_processors_may_be_set_while_enabled(built, then):
    pipe, inputs = built
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    if then == "set_attn_processor":
        for block in pipe.transformer.blocks:
            block.attn1.set_processor(WanAttnProcessor())
    elif then == "set_attention_backend":
        pipe.transformer.set_attention_backend("native")
    else:
        for block in pipe.transformer.blocks:
            block.attn1.fuse_projections()
    torch.testing.assert_close(generate(pipe, inputs), reused)
    assert summary(pipe)["saving"]["reuse_steps"] > 0
    disable(pipe)
    assert traces(pipe.transformer) == []


def test_processors_that_were_kept_do_nothing_once_disabled(built):
    pipe, inputs = built
    dense = generate(pipe, inputs)
    enable(pipe, TOKEN)
    kept = {name: block.attn1.processor for name, block in enumerate(pipe.transformer.blocks)}
    disable(pipe)
    for name, block in enumerate(pipe.transformer.blocks):
        block.attn1.processor = kept[name]
    assert torch.equal(generate(pipe, inputs), dense)


@torch.no_grad()
def guided(transformer, skip):
    """Two passes, of which the second leaves something out, as guidance by skipped layers and by perturbed attention
    does; the outputs."""
    outputs = []
    for step in range(4):
        for name in ("pred_cond", "pred_cond_skip"):
            if name == "pred_cond_skip":
                apply_layer_skip(transformer, skip)
            with transformer.cache_context(name, step_index=step, num_inference_steps=4):
                latents = torch.ones(1, 4, 3, 4, 6) * torch.arange(6) + step
                timestep, text = torch.tensor([900.0 - step]), torch.ones(1, 5, 16)
                outputs.append(transformer(latents, timestep, text, return_dict=False)[0])
            for module in transformer.modules():
                if hasattr(module, "_diffusers_hook"):
                    module._diffusers_hook.remove_hook("layer_skip_hook", recurse=False)
    transformer._reset_stateful_cache()
    return torch.stack(outputs).unflatten(0, (4, 2))


@pytest.mark.parametrize("skip", ["block", "scores"])
def test_layers_that_guidance_leaves_out_are_not_saved(skip, monkeypatch):
    transformer = model("WanTransformer3DModel", **WAN)
    config = LayerSkipConfig(indices=[1], fqn="blocks")
    if skip == "scores":
        config = LayerSkipConfig([1], "blocks", skip_attention=False, skip_attention_scores=True, skip_ff=False)
        known = AttentionProcessorMetadata(skip_processor_output_fn=None)
        monkeypatch.setattr(AttentionProcessorRegistry, "get", lambda processor: known)
    dense = guided(transformer, config)
    enable(transformer, ReuseConfig(theta=0))
    assert torch.equal(guided(transformer, config), dense)
    records = summary(transformer)["records"]
    layers = {name: {r["layer"] for r in records if r["pass"] == name} for name in ("pred_cond", "pred_cond_skip")}
    assert layers == {"pred_cond": {"blocks.0.attn1", "blocks.1.attn1"}, "pred_cond_skip": {"blocks.0.attn1"}}
    assert summary(transformer)["saving"]["all_steps"] == 0


def test_a_mask_is_looked_into_once_for_all_layers(monkeypatch):
    """Every look makes the host wait for the device."""
    pipe, inputs = build("hunyuan_video", "euler")
    looks = []

    def look(*arguments):
        looks.append(None)
        return read_mask(*arguments)

    monkeypatch.setattr("timeripple.hooks.masks.read_mask", look)
    enable(pipe, TOKEN)
    generate(pipe, inputs)
    assert len(looks) == pipe.num_timesteps and summary(pipe)["layers"] == 2


def test_a_mask_that_is_known_is_not_looked_into():
    grid = TokenGrid(1, 2, 2, text_after=3)
    query = torch.zeros(1, 1, 7, 4, device="meta")
    mask = torch.ones(1, 7, dtype=torch.bool, device="meta")  # without values
    assert AttentionCall(query, query, query, grid, None, mask, mask_is_known=True).key_mask is mask
    with pytest.raises(RuntimeError, match="meta"):
        AttentionCall(query, query, query, grid, None, mask)


# --- What is refused, and when ----------------------------------------------------------------------------------------


def test_a_config_may_be_text(built):
    pipe, _ = built
    enable(pipe, "token:0.7")
    assert summary(pipe)["method"] == "token-0.7"


@pytest.mark.parametrize("config", ["tokens:0.7", "token:seven", "", 0.7, {"budget": 0.7}, ReuseConfig])
def test_what_is_no_config_is_refused_at_once_in_one_sentence(built, config):
    pipe, _ = built
    enable(pipe, TOKEN)
    with pytest.raises(ConfigError) as error:
        enable(pipe, config)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert summary(pipe)["method"] == TOKEN.label  # what was on stays on


@pytest.mark.parametrize("given", [{"memory_limit": "8GB"}, {"memory_limit": -1}, {"num_inference_steps": 0}])
def test_what_is_no_number_is_refused_and_what_was_enabled_stays(given):
    pipe, _ = build("wan", "euler")
    enable(pipe, "token:0.5")
    ((name, value),) = given.items()
    with pytest.raises(ConfigError, match=f"^{name} is {value!r}; give a number of at least [01], or leave it out.$"):
        enable(pipe, "token:0.6", **given)
    assert summary(pipe)["method"] == "token-0.5"


ANY = ["wan", "wan_video_to_video", "wan_vace", "skyreels", "hunyuan_video", "cogvideox", "ltx", "mochi", "allegro"]
OURS = ("forecast", "spectrum:0.5", "easycache", "hsa", "lightning-cp", "cache-dit")  # with hooks and code of our own
CASES = [(name, cache) for cache in set(STEP_CACHES) - {*OURS, "spectrum"} for name in ANY]
CASES += [(name, cache) for cache in OURS for name in ("wan", "hunyuan_video", "ltx")]


@pytest.mark.parametrize(("name", "cache"), sorted(CASES))
def test_step_caches_work_or_refuse_before_anything_ran(name, cache):
    pipe, inputs = build(name, "euler")
    dense = generate(pipe, inputs)
    pipe.transformer.__dict__.pop("_diffusers_hook", None)  # cache_context made it
    ready = False
    try:
        with parse_method(cache).applied(pipe, 4) as summarise:
            ready = True
            cached = generate(pipe, inputs)
            assert cached.isfinite().all() and summarise()["saving"]["all_steps"] >= 0
    except ConfigError as error:
        assert not ready and "\n" not in str(error)
    assert traces(pipe.transformer) == []
    assert getattr(pipe.transformer, "_cache_config", None) is None
    assert torch.equal(generate(pipe, inputs), dense)


def test_a_cache_that_fails_half_way_leaves_nothing_behind(built, monkeypatch):
    pipe, inputs = built
    dense = generate(pipe, inputs)

    monkeypatch.setattr("diffusers.hooks.first_block_cache._apply_fbc_block_hook", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), parse_method("first-block-cache").applied(pipe, 4):
        pass
    monkeypatch.undo()
    assert torch.equal(generate(pipe, inputs), dense)
    with parse_method("first-block-cache:0").applied(pipe, 4):
        assert torch.equal(generate(pipe, inputs), dense)
