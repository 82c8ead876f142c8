"""The prompt grammar of Pond: plain English in, one concept per slot out.

A prompt names a subject and, in any order and phrasing, a colour, a size, a motion, a background, a light and a camera
movement: "a small red ball rolling left across the ocean at sunset while the camera pans right". Slots that the prompt
leaves open are `None`, which the model was trained to fill in by itself.
"""

import difflib
import itertools
import random
import re
from dataclasses import asdict, dataclass

SLOTS = {
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "subject": ("ball", "cube", "star", "heart", "ring", "pyramid", "fish"),
    "size": ("small", "medium", "large"),
    "motion": ("left", "right", "up", "down", "bouncing", "circling", "growing", "shrinking", "still", "spinning"),
    "background": ("ocean", "meadow", "desert", "sky", "snow", "city"),
    "light": ("day", "sunset", "night"),
    "camera": ("static", "pan left", "pan right"),
}
"""Every concept Pond knows, by slot."""

SYNONYMS = {
    "colour": {
        "red": "scarlet crimson ruby", "orange": "amber tangerine", "yellow": "golden gold lemon",
        "green": "emerald lime",
        "cyan": "turquoise teal aqua", "blue": "azure sapphire", "purple": "violet lilac", "pink": "magenta rose",
    },
    "subject": {
        "ball": "sphere orb balloon marble", "cube": "box block square dice", "star": "starfish", "heart": "valentine",
        "ring": "donut doughnut hoop circle", "pyramid": "cone triangle", "fish": "goldfish",
    },
    "size": {"small": "little tiny mini", "medium": "normal", "large": "big huge giant"},
    "motion": {
        "left": "leftward leftwards", "right": "rightward rightwards", "up": "upward upwards rising rises ascending",
        "down": "downward downwards falling sinking descending dropping falls",
        "bouncing": "bounces jumping hopping bounce", "circling": "circles orbiting looping orbits",
        "growing": "grows expanding swelling inflating", "shrinking": "shrinks contracting deflating",
        "still": "resting motionless standing hovering",
        "spinning": "spins spin rotates rotate rotating turning turns twirling twirls whirling",
    },
    "background": {
        "ocean": "sea waves water lake", "meadow": "grass field grassland lawn", "desert": "sand dunes dune beach",
        "sky": "clouds air", "snow": "winter snowfield ice", "city": "town street skyline",
    },
    "light": {
        "day": "daytime daylight noon sunny", "sunset": "dusk evening sundown dawn",
        "night": "midnight moonlight dark",
    },
}  # fmt: skip
"""Other words for a concept. A word belongs to one concept only."""

FILLER = frozenset(
    """a an the and of in on at to over under across through above with while as its it is by during from against into
    slowly gently softly quickly smoothly moving moves rolling rolls drifting drifts sliding slides swimming swims
    floating floats flying flies gliding glides going goes travelling traveling toward towards bright shiny lovely
    coloured colored camera side top bottom around view scene video clip showing shows that which
    there some one very near beside behind inside being gets steadily quietly""".split()  # noqa: SIM905
)
"""Words that carry no concept."""

CAMERA = re.compile(
    r"\b(?:the )?camera (?:slowly |gently )?(?:is )?(?:pans?|panning|moves?|moving) (?:to )?(?:the )?(left|right)\b"
    r"|\bpanning (?:to the )?(left|right)\b"
)
STATIC_CAMERA = re.compile(r"\b(?:static|fixed|still) camera\b")

WORDS = {
    word: (slot, concept)
    for slot, concepts in SLOTS.items()
    if slot != "camera"
    for concept in concepts
    for word in (concept, *SYNONYMS[slot].get(concept, "").split())
}

AFTER_SUBJECT = ("motion", "background", "light")  # slots whose words usually follow it
MAX_PROMPT_LENGTH = 400


class PromptError(ValueError):
    """A prompt Pond cannot honour; the message is one sentence for the user."""


@dataclass(frozen=True)
class Description:
    """What a prompt says: one concept of `SLOTS` per slot, or None where it says nothing."""

    colour: str | None = None
    subject: str | None = None
    size: str | None = None
    motion: str | None = None
    background: str | None = None
    light: str | None = None
    camera: str | None = None


def parse_prompt(prompt: str) -> Description:
    """Read a prompt into a `Description`.

    Raises `PromptError` for an empty or overlong prompt, an unknown word (naming the closest known ones), two concepts
    for one slot, or a prompt without a subject.
    """
    if not prompt.strip():
        raise PromptError('The prompt is empty: write for example "a red ball rolling left across the ocean".')
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise PromptError(f"The prompt has {len(prompt)} characters; shorten it to at most {MAX_PROMPT_LENGTH}.")
    text = prompt.lower()
    found: dict[str, str] = {}
    if camera := CAMERA.search(text):
        found["camera"] = f"pan {camera[1] or camera[2]}"
        text = CAMERA.sub(" ", text)
    elif STATIC_CAMERA.search(text):
        found["camera"] = "static"
        text = STATIC_CAMERA.sub(" ", text)
    words = re.findall(r"[\w'-]+", text)
    subject_at = next((i for i, word in enumerate(words) if (_known(word) or ("",))[0] == "subject"), None)
    for index, word in enumerate(words):
        if word in FILLER:
            continue
        known = _known(word)
        if known is None:
            raise PromptError(_advice(word, before_subject=None if subject_at is None else index < subject_at))
        slot, concept = known
        if found.get(slot, concept) != concept:
            raise PromptError(
                f'The prompt asks for two kinds of {slot}, "{found[slot]}" and "{concept}": keep one of them.'
            )
        found[slot] = concept
    if "subject" not in found:
        raise PromptError(f"The prompt names no subject: add one of {', '.join(SLOTS['subject'])}.")
    return Description(**found)


def _known(word: str) -> tuple[str, str] | None:
    """Slot and concept of a word, None where Pond does not know it."""
    for form in (word, word.removesuffix("s"), word.removesuffix("'s")):
        if form in WORDS:
            return WORDS[form]
    return None


def _advice(word: str, before_subject: bool | None) -> str:
    """What to write in place of an unknown word: known words like it that can stand in its place, or what can."""
    slots = ("subject",) if before_subject is None else ("colour", "size") if before_subject else AFTER_SUBJECT
    fitting = [known for known, (slot, _) in WORDS.items() if slot in slots]
    close = difflib.get_close_matches(word, fitting, n=3, cutoff=0.6)
    if close:
        advice = f"did you mean {', '.join(close)}?"
    else:
        advice = f"{'; '.join(f'{slot}s are ' + ', '.join(SLOTS[slot]) for slot in slots)}."
    return f'Pond does not know the word "{word[:40]}": {advice}'


MOTION_PHRASES = {
    "left": ("rolling left", "drifting to the left"), "right": ("rolling right", "drifting to the right"),
    "up": ("rising", "floating up"), "down": ("falling", "sinking down"),
    "bouncing": ("bouncing",), "circling": ("circling",), "growing": ("growing",),
    "shrinking": ("shrinking",), "still": ("resting",), "spinning": ("spinning",),
}  # fmt: skip
BACKGROUND_PHRASES = {
    "ocean": "across the ocean", "meadow": "over a meadow", "desert": "in the desert",
    "sky": "in the sky", "snow": "over the snow", "city": "above the city",
}  # fmt: skip
LIGHT_PHRASES = {"day": "by day", "sunset": "at sunset", "night": "at night"}


def describe(description: Description) -> str:
    """The inverse of `parse_prompt`: one natural sentence that parses back to `description`."""
    words = ["a", description.size, description.colour, description.subject]
    words += [MOTION_PHRASES[description.motion][0]] if description.motion else []
    words += [BACKGROUND_PHRASES[description.background]] if description.background else []
    words += [LIGHT_PHRASES[description.light]] if description.light else []
    if description.camera == "static":
        words.append("with a static camera")
    elif description.camera:
        words.append(f"while the camera {description.camera.replace('pan', 'pans')}")
    return " ".join(word for word in words if word)


ADDED = ("spinning",)
"""Concepts that joined the grammar later: their ids come last, so that those of the others stay."""

CONCEPT_IDS = {
    concept: number
    for number, concept in enumerate(
        sorted(itertools.chain.from_iterable(SLOTS.values()), key=ADDED.__contains__), start=1
    )
}


def concept_ids(description: Description) -> list[int]:
    """One id per slot, in the order of `SLOTS`: 0 means open, other ids are unique over all slots."""
    return [0 if value is None else CONCEPT_IDS[value] for value in asdict(description).values()]


NUM_CONCEPTS = 1 + len(CONCEPT_IDS)
HELD_OUT_SHARE = 16


def is_held_out(description: Description) -> bool:
    """True for the one in sixteen combinations of colour, subject, motion and background that training never shows."""
    index = [SLOTS[slot].index(getattr(description, slot)) for slot in ("colour", "subject", "motion", "background")]
    return (index[0] * 5 + index[1] * 3 + index[2] * 7 + index[3] * 11) % HELD_OUT_SHARE == 0


def random_description(rng: random.Random, held_out: bool = False) -> Description:
    """A complete random description, from the training combinations or from the held-out ones."""
    while True:
        description = Description(**{slot: rng.choice(concepts) for slot, concepts in SLOTS.items()})
        if is_held_out(description) == held_out:
            return description
