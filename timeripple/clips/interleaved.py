"""Several methods that make their clips together, step by step: what disturbs the machine then disturbs all alike, and
all of them can be watched."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextvars import copy_context
from itertools import chain

import torch
from diffusers import DiffusionPipeline
from torch import nn

from timeripple.clips.generate import BrokenClip, Generation, Request, StepEvent, generate
from timeripple.clips.methods import Method, blocks_of, is_compiled


class Turns:
    """Whose turn it is, of so many: of those that are not done, who has done the smallest share."""

    def __init__(self, count: int):
        self._changed = threading.Condition()
        self._shares = dict.fromkeys(range(count), 0.0)

    def done(self, who: int, share: float | None) -> None:
        """`who` has done this share of his work; None: all, and takes part no longer."""
        with self._changed:
            if share is None:
                del self._shares[who]
            else:
                self._shares[who] = share
            self._changed.notify_all()

    def wait(self, who: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: min(self._shares, key=lambda each: (self._shares[each], each)) == who)


def can_take_turns(pipeline: DiffusionPipeline) -> bool:
    """Whether clips can be made together: on the CPU, which has the memory for it, and where nothing is compiled."""
    return pipeline.device.type == "cpu" and not any(map(is_compiled, blocks_of(pipeline)))


def twin(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline of the same weights, with hooks and a schedule of its own."""
    other = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            weights = chain(part.parameters(), part.buffers())
            setattr(other, name, copy.deepcopy(part, {id(tensor): tensor for tensor in weights}))
    other.scheduler = copy.deepcopy(pipeline.scheduler)
    return other


def generate_all(
    pipeline: DiffusionPipeline,
    request: Request,
    methods: list[Method],
    *,
    on_step: Callable[[StepEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generation | BrokenClip]:
    """Of every method its clip, or what broke it, in turn where that can be; callbacks and other errors as in
    `generate`."""
    if len(methods) > 1 and can_take_turns(pipeline):
        return _in_turn(pipeline, request, methods, on_step, should_stop or (lambda: False))
    made: list[Generation | BrokenClip] = []
    for method in methods:
        try:
            made.append(generate(pipeline, request, method, on_step=on_step, should_stop=should_stop))
        except BrokenClip as error:
            made.append(error)
    return made


def _in_turn(
    pipeline: DiffusionPipeline,
    request: Request,
    methods: list[Method],
    on_step: Callable[[StepEvent], None] | None,
    should_stop: Callable[[], bool],
) -> list[Generation | BrokenClip]:
    """Each method has a thread, of which one is at work at a time: after a denoising step it is the turn of who has
    done the smallest share of his steps. Waiting counts in nobody's seconds."""
    turns, over, threads = Turns(len(methods)), threading.Event(), torch.get_num_threads()
    made: dict[int, Generation | BrokenClip] = {}
    errors: list[BaseException] = []

    def make(who: int, own: DiffusionPipeline) -> None:
        def after_step(event: StepEvent) -> None:
            if on_step is not None:
                on_step(event)
            turns.done(who, event.step / event.steps)
            turns.wait(who)

        turns.wait(who)
        torch.set_num_threads(threads)
        stop = lambda: over.is_set() or should_stop()  # noqa: E731
        try:
            made[who] = generate(own, request, methods[who], on_step=after_step, should_stop=stop)
        except BrokenClip as error:
            made[who] = error
        except BaseException as error:
            errors.append(error)
            over.set()
        finally:
            turns.done(who, None)

    workers = [
        threading.Thread(target=copy_context().run, args=(make, who, twin(pipeline) if who else pipeline), daemon=True)
        for who in range(len(methods))
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        over.set()  # when it was interrupted
        for worker in workers:
            worker.join()
    if errors:
        raise errors[0]
    return [made[who] for who in range(len(methods))]
