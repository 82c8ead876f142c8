"""Reuse under torch.compile: no graph break, no recompilation from step to step, the outputs of eager execution."""

import pytest
import torch
import torch._dynamo as dynamo

from tests.hooks.pipelines import build, generate
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.clips.methods import parse_method

TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)
WHOLE = ("wan", "hunyuan_video", "cogvideox", "ltx", "mochi", "allegro", "skyreels", "wan_vace")
BLOCKS = (
    "wan",
    "hunyuan_video",
    "hunyuan_video_15",
    "ltx",
    "skyreels",
)  # diffusers compiles the blocks of these one by one


@pytest.fixture(autouse=True)
def fresh():
    dynamo.reset()
    yield
    dynamo.reset()


def compile_whole(pipe):
    pipe.transformer.compile(fullgraph=True, backend="aot_eager", dynamic=False)


def compile_blocks(pipe):
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager", dynamic=False)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


CASES = [(name, compile_whole) for name in WHOLE] + [(name, compile_blocks) for name in BLOCKS]


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize(("name", "compiled"), CASES, ids=[f"{name}-{how.__name__}" for name, how in CASES])
def test_fullgraph_gives_what_eager_gives_and_compiles_once(name, compiled):
    pipe, inputs = build(name, "euler")
    dense = generate(pipe, inputs)
    enable(pipe, TOKEN)
    eager, of_eager = generate(pipe, inputs), summary(pipe)
    assert (eager - dense).norm() > 5e-5 * dense.norm()  # five times what may be between eager and compiled
    compiled(pipe)
    same(generate(pipe, inputs), eager)
    with dynamo.config.patch(error_on_recompile=True):
        same(generate(pipe, inputs), eager)
    kinds = [[(r["step"], r["pass"], r["layer"], r["kind"]) for r in s["records"]] for s in (of_eager, summary(pipe))]
    assert kinds[0] == kinds[1]
    disable(pipe)
    same(generate(pipe, inputs), dense)


def test_steps_do_not_recompile():
    """Counted: a run compiles as many graphs in its first step as in all."""
    pipe, inputs = build("wan", "euler")
    enable(pipe, ReuseConfig(theta=1.0, refresh=3))
    compile_whole(pipe)
    graphs = []

    def count(pipe, step, timestep, tensors):
        graphs.append(dynamo.utils.counters["stats"]["unique_graphs"])
        return {}

    generate(pipe, inputs, num_inference_steps=8, callback_on_step_end=count)
    assert graphs[0] > 0 and {*graphs} == {graphs[0]}


@pytest.mark.parametrize("compiled", [compile_whole, compile_blocks])
def test_compiled_before_it_is_enabled_and_off_again(compiled):
    pipe, inputs = build("wan", "unipc")
    dense = generate(pipe, inputs)
    enable(pipe, TOKEN)
    eager = generate(pipe, inputs)
    disable(pipe)
    compiled(pipe)
    same(generate(pipe, inputs), dense)
    for _ in range(2):
        enable(pipe, TOKEN)
        same(generate(pipe, inputs), eager)
        disable(pipe)
        same(generate(pipe, inputs), dense)


def test_other_sizes():
    pipe, inputs = build("wan", "unipc")
    enable(pipe, TOKEN)
    sizes = [{"height": 32, "width": 48}, {"height": 48, "width": 48}, {"height": 48, "width": 64}]
    eager = [generate(pipe, inputs, **size) for size in sizes]
    pipe.transformer.compile(fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for size, expected in zip(sizes, eager, strict=True):
            same(generate(pipe, inputs, **size), expected)
            assert summary(pipe)["grid"] == [3, size["height"] // 16, size["width"] // 16]


def test_two_pipelines_keep_to_their_own_state():
    first, second = build("wan", "unipc"), build("wan", "euler")
    second[0].transformer.blocks[0].attn1.to_q.weight.mul_(2)
    eager = []
    for pipe, inputs in (first, second):
        enable(pipe, TOKEN)
        eager.append(generate(pipe, inputs))
        compile_blocks(pipe)
    for _ in range(2):
        for (pipe, inputs), expected in zip((first, second), eager, strict=True):
            same(generate(pipe, inputs), expected)
    disable(first[0])
    same(generate(*second), eager[1])


def test_a_wrapped_transformer():
    """`torch.compile` of the transformer, as most write it."""
    pipe, inputs = build("wan", "unipc")
    enable(pipe, TOKEN)
    eager = generate(pipe, inputs)
    pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend="aot_eager", dynamic=False)
    same(generate(pipe, inputs), eager)
    enable(pipe, TOKEN)
    same(generate(pipe, inputs), eager)
    assert summary(pipe)["saving"]["reuse_steps"] > 0


OTHERS = ["tile:0.3", "channel:0.5", "output-cache:0.5", "attention-forecast:0.5", "svg"]


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods(method):
    pipe, inputs = build("wan", "unipc")
    outputs, savings = [], []
    for compiled in (False, True):
        if compiled:
            compile_blocks(pipe)
        with parse_method(method).applied(pipe, 4) as summarise:
            outputs.append(generate(pipe, inputs))
            savings.append(summarise()["saving"])
    same(outputs[1], outputs[0])
    assert savings[0] == savings[1] and savings[0]["all_steps"] > 0


@pytest.mark.parametrize("method", ["token:0.5:refresh=2", "output-cache:0.5", "attention-forecast:0.5:extrapolate=no"])
def test_by_inductor(method):
    """Which writes over what operators give it."""
    pipe, inputs = build("wan", "unipc")
    with parse_method(method).applied(pipe, 6):
        eager = generate(pipe, inputs, num_inference_steps=6)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    with parse_method(method).applied(pipe, 6):
        same(generate(pipe, inputs, num_inference_steps=6), eager)


def test_diffusers_itself_cannot_compile_hunyuan_video_15_as_a_whole():
    """It looks into a picture while it is traced. Its blocks can be compiled, with reuse as well, see above."""
    pipe, inputs = build("hunyuan_video_15", "euler")
    pipe.transformer.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    with pytest.raises(dynamo.exc.Unsupported, match="Data-dependent branching"):
        generate(pipe, inputs)


def test_training_through_a_compiled_model_stays_dense():
    pipe, _ = build("wan", "unipc")
    enable(pipe, TOKEN)
    pipe.transformer.compile(backend="aot_eager")
    latents = torch.ones(1, 4, 3, 4, 6, requires_grad=True)
    with torch.enable_grad():
        pipe.transformer(latents, torch.tensor([900.0]), torch.ones(1, 5, 16), return_dict=False)[0].sum().backward()
    assert latents.grad.isfinite().all() and latents.grad.any()
