"""A comparison from the form to the run: what is asked for, what is computed for it, how far it is."""

import threading
from dataclasses import replace

from timeripple.clips.compare import Comparison, check, save
from timeripple.clips.generate import MAX_SEED, Generation, Request
from timeripple.clips.methods import Method, parse_method
from ui import markup
from ui.form import SIZES, queue_note, read_request, size_of
from ui.gpu import Works
from ui.limits import Limits
from ui.method_form import fill_method, read_method, title
from ui.result import keep_previews
from ui.runs import Run, Runs

DENSE = "dense"
FEWEST_STEPS, GUIDANCE = 2, (1, 8)  # what the form holds


class References:
    """Dense clips that were made before, by request, the latest few: each is computed once."""

    def __init__(self, most: int = 4):
        self._most, self._kept, self._lock = most, {}, threading.Lock()

    def find(self, request: Request) -> Generation | None:
        with self._lock:
            return self._kept.get(request)

    def keep(self, request: Request, generation: Generation) -> None:
        with self._lock:
            self._kept.pop(request, None)
            self._kept[request] = generation
            while len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]


def read_form(settings: tuple) -> tuple[Request, list[Method]]:
    """What the form asks for. Raises ValueError, one sentence, for values that are missing or make no method."""
    prompt, seed, size, steps, guidance, negative, *methods = settings
    request = read_request(prompt, seed, size, steps, negative, guidance)
    half = len(methods) // 2
    return request, [read_method(methods[:half], request.steps), read_method(methods[half:], request.steps)]


def fill_form(request: Request, methods: list[Method], limits: Limits, sizes: dict = SIZES) -> list:
    """The values of the form that ask for this. Raises ValueError, one sentence, for what the form cannot ask for."""
    if len(methods) == 3 and methods[0].label == DENSE:  # the reference that always runs along
        methods = methods[1:]
    if len(methods) != 2:
        raise ValueError(f"These settings compare {len(methods)} methods; the form compares two.")
    limits.check_steps(request)
    for name, value, (low, high) in (
        ("seed", request.seed, (0, MAX_SEED)),
        ("number of steps", request.steps, (FEWEST_STEPS, limits.max_steps)),
        ("guidance", request.guidance_scale, GUIDANCE),
    ):
        if not low <= value <= high:
            raise ValueError(f"The {name} is {str(value)[:40]}; the form holds {low} to {high}.")
    filled = [value for method in methods for value in fill_method(method, request.steps)]
    size = size_of(request, sizes)
    return [request.prompt, request.seed, size, request.steps, request.guidance_scale, request.negative_prompt, *filled]


def fill_within(request: Request, methods: list[Method], limits: Limits) -> list:
    """As `fill_form`, with fewer steps where the limit is lower."""
    return fill_form(replace(request, steps=min(request.steps, limits.max_steps)), methods, limits)


def submit(
    pipeline,
    works: Works,
    runs: Runs,
    request: Request,
    methods: list[Method],
    settings: tuple = (),
    references: References | None = None,
) -> Run:
    """Queues a comparison; with `references`, dense attention always runs along, before the others, as what they are
    compared with. Raises ValueError, one sentence, for what is out of bounds or cannot be generated."""
    runs.limits.check_number(len(methods))
    check(pipeline, request, methods)
    if references is not None:
        dense = next((method for method in methods if method.label == DENSE), parse_method(DENSE))
        methods = [dense, *(method for method in methods if method.label != DENSE)]
    runs.limits.check_comparison(pipeline, request, methods)

    def work(run: Run) -> dict:
        known = references.find(request) if references else None
        try:
            comparison: Comparison = works.compare(run, request, methods, known)
            if references:
                references.keep(request, comparison.generations[0])
            if comparison.broken:
                raise ValueError(" ".join(comparison.broken.values()))
            save(comparison, run.folder, pipeline)
            keep_previews(run)
        finally:
            run.previews.clear()
        report = comparison.report(pipeline)
        if known:
            remark = "The dense clip and its seconds are those of an earlier run of this prompt, size, seed and steps."
            report["remarks"] = [*report["remarks"], remark]
        return report

    return runs.submit(work, settings)


def describe(run: Run, ahead: int) -> str:
    """The stage of a run that has no result to show."""
    if run.state == "cancelled":
        return markup.notice("Cancelled", "The run has stopped. Change what you like and generate again.")
    if run.state == "failed":
        return markup.notice("This run did not finish", run.error, alert=True)
    _, methods = read_form(run.settings)
    labels = list(dict.fromkeys([DENSE, *(method.label for method in methods)]))
    if DENSE not in run.progress and run.progress:  # known from before
        labels.remove(DENSE)
    events = {label: run.progress.get(label) for label in labels}
    left = [label for label in labels if not (events[label] and events[label].step == events[label].steps)]
    names = {method.label: title(method) for method in methods} | {DENSE: "Dense"}
    if run.stop.is_set():
        note = "Cancelling."
    elif ahead:
        note = queue_note(ahead)
    elif not run.progress:
        note = "Warming up: one step that is not timed."
    elif not left:
        note = "Decoding the videos and measuring how close they are."
    else:
        begun = [names[label] for label in left if events[label]]
        note = f"{' and '.join(begun)} advance in turn, step by step." if begun[1:] else f"{names[left[0]]} is running."
        if DENSE in left and DENSE not in [method.label for method in methods] and (event := events[DENSE]):
            note += f" The dense clip, which both are compared with, is at step {event.step} of {event.steps}."
    return markup.progress(note, [(title(method), run.progress.get(method.label)) for method in methods])
