import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timeripple.pond.prompts import (
    NUM_CONCEPTS,
    SLOTS,
    SYNONYMS,
    Description,
    PromptError,
    concept_ids,
    describe,
    is_held_out,
    parse_prompt,
    random_description,
)

descriptions = st.builds(
    Description,
    subject=st.sampled_from(SLOTS["subject"]),
    **{
        slot: st.none() | st.sampled_from(concepts)
        for slot, concepts in SLOTS.items()
        if slot != "subject"
    },
)  # fmt: skip


@given(descriptions)
def test_describe_is_the_inverse_of_parse(description):
    assert parse_prompt(describe(description)) == description


def test_natural_phrasing_with_synonyms():
    description = parse_prompt("A tiny crimson sphere is drifting to the left over the waves, at dusk.")
    assert description == Description("red", "ball", "small", "left", "ocean", "sunset", None)


def test_a_subject_may_spin():
    assert parse_prompt("a blue star that spins over the sea") == Description("blue", "star", None, "spinning", "ocean")
    assert parse_prompt("one large cube rotating in the snow").motion == "spinning"


def test_ids_of_the_first_edition_stay():
    """Its weights know 39 concepts; what joined the grammar since comes after them."""
    assert concept_ids(Description("red", "fish", "large", "still", "ocean", "night", "pan right")) == [
        1, 15, 18, 27, 28, 36, 39,
    ]  # fmt: skip
    assert concept_ids(Description(motion="spinning"))[3] == 40 == NUM_CONCEPTS - 1


def test_camera_direction_is_not_the_motion():
    description = parse_prompt("a blue fish swimming right in the sky while the camera pans left")
    assert (description.motion, description.camera) == ("right", "pan left")


def test_no_synonym_belongs_to_two_concepts():
    words = [word for slot in SYNONYMS.values() for text in slot.values() for word in text.split()]
    words += [concept for slot, concepts in SLOTS.items() if slot != "camera" for concept in concepts]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a red ball " * 500, "5500 characters"),
        ("a red dragon in the sky", '"dragon"'),
        ("a red baal in the sky", "ball"),
        ("a glass ball in the sky", "colours are red"),
        ("a red ball on the glass", "did you mean grass"),
        ("a red and blue ball", '"red" and "blue"'),
        ("red in the sky", "no subject"),
        ("<script>alert(1)</script>", '"script"'),
        ("ein roter Ball", '"ein"'),
    ],
)
def test_what_cannot_be_honoured_is_said_in_one_sentence(prompt, words):
    with pytest.raises(PromptError, match=words) as error:
        parse_prompt(prompt)
    assert "\n" not in str(error.value)


@given(descriptions, descriptions)
def test_concept_ids_tell_descriptions_apart(one, other):
    assert (concept_ids(one) == concept_ids(other)) == (one == other)
    assert all(0 <= number < NUM_CONCEPTS for number in concept_ids(one))


def test_training_and_held_out_combinations_do_not_meet():
    rng = random.Random(0)
    shown, held_out = [
        {(d.colour, d.subject, d.motion, d.background) for d in (random_description(rng, flag) for _ in range(3000))}
        for flag in (False, True)
    ]
    assert not shown & held_out
    share = sum(is_held_out(Description(c, s, None, m, b)) for c in SLOTS["colour"] for s in SLOTS["subject"]
                for m in SLOTS["motion"] for b in SLOTS["background"]) / (8 * 7 * 10 * 6)  # fmt: skip
    assert 0.04 < share < 0.09
    for index, slot in enumerate(("colour", "subject", "motion", "background")):
        assert {combination[index] for combination in held_out} == set(SLOTS[slot])
