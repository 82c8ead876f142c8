"""The step of every forward pass is the turn of the pipeline's loop, or attention is dense."""

import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.hooks.hooks import CacheContext

from tests.hooks.pipelines import COMBINATIONS, build, generate, in_precision
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.baselines.faster_cache import FasterCacheConfig
from timeripple.hooks.clock import StepClock, UnknownStep

TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)


class Log:
    """A config whose runs leave attention alone and note what they are told; turn: of the pipeline's loop."""

    label, granularity, kind, records, steps, held_bytes = "log", None, "realised", (), (), 0

    def __init__(self):
        self.totals, self.forwards, self.turn = [], [], 0

    def start(self, num_inference_steps):
        self.totals.append(num_inference_steps)
        return self

    def begin_forward(self, name, step):
        self.forwards.append((self.turn, name, step))

    def attention(self, layer, call):
        mask = None if call.key_mask is None else call.key_mask[:, None, None]
        return torch.nn.functional.scaled_dot_product_attention(
            call.query, call.key, call.value, mask, scale=call.scale
        )

    def end_forward(self):
        pass

    def skipped(self, layer, heads):
        assert self.has_cache, "nothing is skipped"


def logged(pipe, inputs, cache=None, **more):
    """What the runs are told in one generation, beside the turns of the pipeline's loop, counted by its callback."""
    log = Log()

    def count(*_):
        log.turn += 1
        return {}

    enable(pipe, log)
    log.has_cache = cache is not None
    if cache is not None:
        with cache.applied(pipe, more["num_inference_steps"]):
            generate(pipe, inputs, callback_on_step_end=count, **more)
    elif "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        generate(pipe, inputs, callback_on_step_end=count, **more)
    else:  # then by its scheduler
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda *args, **kwargs: (step(*args, **kwargs), count())[0]
        generate(pipe, inputs, **more)
    disable(pipe)
    return log


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "scheduler"), COMBINATIONS)
def test_the_step_is_the_turn_of_the_loop(name, scheduler, dtype):
    pipe, inputs = build(name, scheduler)
    inputs = in_precision(pipe, inputs, dtype)
    log = logged(pipe, inputs)
    turns = pipe.num_timesteps
    assert {*log.totals} == {turns} and len(log.totals) == (2 if name == "wan_two_experts" else 1)
    assert all(turn == step for turn, _, step in log.forwards)
    passes = [[n for turn, n, _ in log.forwards if turn == number] for number in range(turns)]
    assert all(names == passes[0] and len({*names}) == len(names) for names in passes)


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize(("shift", "steps"), [(7.0, 55), (9.0, 50)])
def test_timesteps_that_round_to_one_are_two_steps(shift, steps):
    """HunyuanVideo's own schedules in bfloat16, in which its transformer is told the time."""
    pipe, inputs = build("hunyuan_video", "euler")
    pipe.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))
    inputs = in_precision(pipe, inputs, torch.bfloat16)
    log = logged(pipe, inputs, num_inference_steps=steps)
    assert len(pipe.scheduler.timesteps.bfloat16().unique()) < steps  # so they do
    assert [step for _, _, step in log.forwards] == list(range(steps))
    enable(pipe, ReuseConfig())
    assert generate(pipe, inputs, num_inference_steps=steps).isfinite().all()
    assert 0.5 < summary(pipe)["saving"]["reuse_steps"] < 1


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize("name", ["skyreels", "wan_vace", "wan_image_to_video", "cogvideox"])
def test_schedulers_of_second_order_reuse_and_stay_finite(name):
    pipe, inputs = build(name, "heun")
    dense = generate(pipe, inputs, num_inference_steps=6)
    enable(pipe, ReuseConfig())
    reused = generate(pipe, inputs, num_inference_steps=6)
    assert reused.isfinite().all() and (reused - dense).norm() < 0.3 * dense.norm()
    assert len(summary(pipe)["saving"]["per_step"]) == 11


@pytest.mark.filterwarnings("error:Attention stays dense")
def test_frames_that_denoise_one_after_the_other_are_reused():
    pipe, inputs = build("skyreels_forcing", "unipc")
    dense = generate(pipe, inputs, num_inference_steps=8)
    enable(pipe, ReuseConfig(theta=1.0, refresh=4))
    reused = generate(pipe, inputs, num_inference_steps=8)
    records = summary(pipe)["records"]
    assert reused.isfinite().all() and (reused - dense).norm() < 0.3 * dense.norm()
    assert sum(record["kind"] == "reuse" for record in records) > len(records) / 2
    assert sorted({record["step"] for record in records}) == list(range(pipe.num_timesteps))


@pytest.mark.parametrize("name", ["wan", "wan_image_to_video", "wan_video_to_video", "ltx", "allegro"])
@pytest.mark.parametrize("turn", [0, 2])
def test_a_run_that_ends_by_an_exception_leaves_nothing_to_the_next(name, turn):
    pipe, inputs = build(name, "euler")
    enable(pipe, TOKEN)
    first = generate(pipe, inputs)

    def fail(pipe, step, timestep, tensors):
        if step == turn:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, inputs, seed=1, callback_on_step_end=fail)
    assert torch.equal(generate(pipe, inputs), first)
    assert [*dict.fromkeys(record["step"] for record in summary(pipe)["records"])] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["wan", "wan_image_to_video", "wan_video_to_video", "ltx", "allegro", "cogvideox"])
def test_a_call_in_a_step_callback_is_dense_and_disturbs_nothing(name):
    pipe, inputs = build(name, "euler")
    given = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs), with_kwargs=True)
    generate(pipe, inputs)
    hook.remove()
    with torch.no_grad():
        dense = pipe.transformer(**given[0])[0]
    enable(pipe, TOKEN)
    first = generate(pipe, inputs)
    again = []

    def call(pipe, step, timestep, tensors):
        again.append(pipe.transformer(**given[0])[0])
        return {}

    warned = pytest.warns(UserWarning, match="stays dense: the transformer is called")
    if name == "cogvideox":  # its scheduler here says when a step is taken, but names are told as well
        warned = pytest.warns(UserWarning, match="stays dense")
    with warned:
        assert torch.equal(generate(pipe, inputs, callback_on_step_end=call), first)
    assert all(torch.equal(output, dense) for output in again)


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize("name", ["cogvideox", "mochi", "allegro"])
def test_a_batch_that_shrinks_inside_a_run_is_the_same_run(name):
    """FasterCache leaves out the unconditional half at some steps."""
    pipe, inputs = build(name, "euler")
    batches = []
    block = pipe.transformer.transformer_blocks[-1]
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len([*args, *kwargs.values()][0])), with_kwargs=True
    )
    log = logged(pipe, inputs, FasterCacheConfig(2, 2), num_inference_steps=10)
    hook.remove()
    assert {*batches} == {1, 2} and log.totals == [10]
    assert [(turn, step) for turn, _, step in log.forwards] == [(turn, turn) for turn in range(10)]


@pytest.mark.parametrize("name", ["wan_image_to_video", "cogvideox", "ltx"])
def test_reuse_that_is_switched_on_in_the_middle_of_a_clip_begins_with_the_next(name):
    """Nothing says how many steps were made before; a guess would begin at step 0."""
    pipe, inputs = build(name, "euler")
    dense = generate(pipe, inputs)

    def switch_on(pipe, step, timestep, tensors):
        if step == 1:
            enable(pipe, TOKEN)
        return {}

    with pytest.warns(UserWarning, match="stays dense: reuse was switched on while the pipeline was at work"):
        assert torch.equal(generate(pipe, inputs, callback_on_step_end=switch_on), dense)
    reused = generate(pipe, inputs)
    assert sorted({record["step"] for record in summary(pipe)["records"]}) == [0, 1, 2, 3]
    enable(pipe, TOKEN)
    assert torch.equal(generate(pipe, inputs), reused)


def test_a_transformer_shared_by_two_pipelines_does_not_take_the_others_number_of_steps():
    ours, inputs = build("wan_image_to_video", "unipc")
    theirs, _ = build("wan_image_to_video", "euler")
    theirs.transformer = theirs.components["transformer"] = ours.transformer
    theirs.register_modules(transformer=ours.transformer)
    dense = generate(theirs, inputs, num_inference_steps=6)
    enable(ours, TOKEN)
    first = generate(ours, inputs)
    with pytest.warns(UserWarning, match="number of steps is unknown"):
        assert torch.equal(generate(theirs, inputs, num_inference_steps=6), dense)
    assert torch.equal(generate(ours, inputs), first)
    enable(theirs, TOKEN)
    reused = generate(theirs, inputs, num_inference_steps=6)
    assert len(summary(theirs)["saving"]["per_step"]) == 6 and not torch.equal(reused, dense)


# --- Counted calls, where there is no pipeline ------------------------------------------------------------------------


class Caller:
    """A clock and a transformer, called by hand."""

    def __init__(self, total, target=None):
        self.clock = StepClock(target or SimpleNamespace(), total)

    def __call__(self, timestep, name=None, **told):
        context = CacheContext(name, **told) if name else None
        moment = self.clock.moment(self, context, torch.as_tensor(timestep))
        return moment.run, moment.name, moment.step


def test_calls_are_counted_by_pass():
    call = Caller(3)
    steps = [call(t, name) for t in (9, 5, 1) for name in ("cond", "uncond")]
    assert steps == [(1, name, step) for step in range(3) for name in ("cond", "uncond")]
    assert call(9, "cond") == (2, "cond", 0)


def test_guidance_that_starts_late_is_in_the_step_of_the_pass_before_it():
    call = Caller(3)
    assert [call(9, "cond"), call(5, "cond"), call(5, "uncond")] == [(1, "cond", 0), (1, "cond", 1), (1, "uncond", 1)]


def test_second_order_solvers_call_twice_at_a_timestep():
    call = Caller(5)
    assert [call(t, "cond")[2] for t in (9, 5, 5, 1, 1)] == list(range(5))
    call = Caller(5)
    assert [call(t)[2] for t in (9, 9, 5, 5, 5, 5, 1, 1, 1, 1)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_calls_without_names_take_the_first_step_as_a_pattern():
    call = Caller(3)
    places = [call(t) for t in (9, 9, 5, 5, 1, 1)]
    assert places == [(1, f"pass {number}", step) for step in range(3) for number in range(2)]
    assert call(9) == (2, "pass 0", 0)


def test_a_run_that_was_left_is_told_from_its_successor():
    call = Caller(4)
    assert [call(t, "cond")[::2] for t in (9, 7, 9, 7)] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_what_is_not_certain_is_refused():
    call = Caller(4)
    call(9, "cond")
    with pytest.raises(UnknownStep, match="timestep of the first"):
        call(9, "cond")  # two steps that round to one, or another run
    with pytest.raises(UnknownStep, match="timestep of the first"):
        call(5, "cond")
    assert call(9, "cond") == (2, "cond", 0)

    call = Caller(4)
    for _ in range(4):
        call(9)  # two steps that round to one
    call(5), call(5)
    with pytest.raises(UnknownStep, match="a later one has fewer"):
        call(3)

    call = Caller(2)
    call(9, "cond"), call(5, "cond")
    with pytest.raises(UnknownStep, match="more than 2 steps"):
        call(1, "cond")


def test_told_steps_are_taken_as_they_are():
    call = Caller(None)
    told = {"num_inference_steps": 3}
    steps = [call(9, "cond", step_index=step, **told) for step in (0, 1, 2, 0, 1, 0, 0)]
    assert [step[::2] for step in steps] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (4, 0)]
    call(9, "cond", step_index=1, **told)
    with pytest.raises(UnknownStep, match="twice in one step"):
        call(9, "cond", step_index=1, **told)
    with pytest.raises(UnknownStep, match="number of steps is unknown"):
        call(9)


def test_a_pipeline_outside_its_loop_says_nothing():
    pipeline = SimpleNamespace(_current_timestep=None, num_timesteps=50)
    with pytest.raises(UnknownStep, match="number of steps is unknown"):
        Caller(None, pipeline)(9, "cond")
    assert Caller(3, pipeline)(9, "cond") == (1, "cond", 0)


def test_parts_of_a_clip_are_runs():
    """FramePack and long clips: the loop begins anew in one call of the pipeline."""
    pipeline = SimpleNamespace(num_timesteps=2, scheduler=SimpleNamespace(timesteps=torch.arange(2)))
    call, places = Caller(None, pipeline), []
    for _ in range(2):
        for timestep in torch.tensor([9.0, 5.0]):
            pipeline._current_timestep = timestep
            places += [call(timestep, "cond"), call(timestep, "uncond")]
    assert [place[::2] for place in places] == [(1, 0), (1, 0), (1, 1), (1, 1), (2, 0), (2, 0), (2, 1), (2, 1)]
