"""Pipelines, methods, solvers and surroundings together: two runs alike, finite, near dense, and dense again after."""

import contextlib
import itertools

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_module

from tests.hooks.pipelines import PIPELINES, SCHEDULERS, build, can_build, generate, in_precision, transformers
from timeripple.attention.method import ConfigError
from timeripple.clips.methods import parse_method

STEPS = 4
OURS = ("token:0.5", "tile:0.3", "channel:0.5")
MASKS = ("skip:0.3", "svg:0.3", "compact:0.3", "ditfastattn:0.3", "re-ttention:0.3", "token-merge:0.3")
CACHES = ("output-cache:0.5", "pab:2:start=0:end=1000", "faster-cache", "first-block-cache:0.3", "taylorseer:2:start=1")
OTHERS = ("svg2:0.3", "sliding-window:0.3", "attention-forecast:0.5", "forecast:0.5", "spectrum:0.5", "easycache:0.1")
STACKS = ("delta-dit:2", "token:0.3+taylorseer:2:start=2", "token:0.3+first-block-cache:0.3", "channel:0.5+svg:0.3")
PEERS = (*MASKS, *CACHES, *OTHERS, *STACKS)
SURROUNDINGS = ("plain", "offload", "autocast", "bf16")


def offloaded(pipe):
    """Model offloading as diffusers does it, which refuses a machine without an accelerator: off and on after a run."""

    def enable_model_cpu_offload(**_):
        pipe._all_hooks = []
        for part in transformers(pipe):
            remove_hook_from_module(part, recurse=True)
            pipe._all_hooks.append(accelerate.cpu_offload_with_hook(part, torch.device("cpu"))[1])

    pipe.enable_model_cpu_offload = enable_model_cpu_offload
    enable_model_cpu_offload()


def cases():
    """Every pipeline with every solver in all surroundings; to each, the granularities and a peer in turn."""
    turn = itertools.cycle(PEERS)
    for name in PIPELINES:
        for scheduler in SCHEDULERS:
            for surroundings in SURROUNDINGS:
                if can_build(name, scheduler):
                    peer = next(turn)
                    yield pytest.param(
                        name, scheduler, surroundings, peer, id=f"{name}-{scheduler}-{surroundings}-{peer}"
                    )


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize(("name", "scheduler", "surroundings", "peer"), cases())
def test_runs(name, scheduler, surroundings, peer):
    pipe, inputs = build(name, scheduler)
    if surroundings == "bf16":
        inputs = in_precision(pipe, inputs, torch.bfloat16)
    if surroundings == "offload":
        offloaded(pipe)
    around = torch.autocast("cpu", torch.bfloat16) if surroundings == "autocast" else contextlib.nullcontext()

    def run():
        with around:
            return generate(pipe, inputs, num_inference_steps=STEPS).float()

    dense = run()
    for text in (*OURS, peer):
        try:
            with parse_method(text).applied(pipe, pipe.num_timesteps) as summarise:
                outputs = [run(), run()]
                saving = summarise()["saving"]
        except ConfigError:
            assert text in CACHES or "+" in text  # which says so before it runs, see test_hooks
            continue
        assert outputs[0].isfinite().all() and torch.equal(*outputs), text
        assert (outputs[0] - dense).norm() < 0.6 * dense.norm(), text
        assert len(saving["per_step"]) == pipe.num_timesteps, text
        if text in OURS:
            assert max(saving["per_step"]) > 0.1 and not torch.equal(outputs[0], dense), text
    assert torch.equal(run(), dense)
