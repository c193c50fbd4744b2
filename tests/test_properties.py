"""What holds of the parser and the rewards for any text, tried on a few hundred of each by hypothesis."""

import math
import re
from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import rewards
from r1zero import answers

settings.register_profile("here", max_examples=200, deadline=None, derandomize=True)  # the same ones in every run
settings.load_profile("here")

RANGES = {
    "accuracy": (0, 1), "format": (0, 1), "reflection": (0, 1.6), "length": (0, 1),
    "reflection_if_correct": (0, 1.6), "length_if_correct": (0, 1),
}  # fmt: skip
assert RANGES.keys() == rewards.REWARDS.keys()

PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", " ", "\n", "\t", "42", "-7", "1,234.50", "$", "=", "+", "*", "/",
    ".", ",", "%", "\\boxed{", "}", "####", "<<6*7=42>>", "apples", "and a half", "\u2212", "٣", "½", "e", "million",
    *rewards.REFLECTION_PHRASES,
]  # fmt: skip
wild = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)
# As often as not well formed, or nearly.
framed = st.builds("<think>{}</think>\n<answer>{}</answer>{}".format, wild, wild, st.sampled_from(["", " ", "x"]))
completions = wild | framed
solutions = st.sampled_from(["6*7=42\n#### 42", "#### -7", "#### 1,234.5", "#### none", ""])
rows = st.lists(st.tuples(completions, solutions), max_size=6)

numbers = st.integers(-(10**9), 10**9) | st.decimals(-(10**6), 10**6, places=2, allow_nan=False)
WRITTEN = [
    "{}", " {} ", "\n{}\n", "{}.", "${}", "{}%", "\\boxed{{{}}}", "{} apples", "**{}**", "x = {}", "It is {}.", "({})",
    "6*7 = {}", "{} km", "€{}",
]  # fmt: skip


def score(name: str, batch: list[tuple[str, str]]) -> list:
    texts, golds = [text for text, _ in batch], [gold for _, gold in batch]
    return rewards.REWARDS[name](texts, solution=golds)


@pytest.mark.parametrize("name", RANGES)
@given(batch=rows)
def test_a_reward_never_raises_and_is_finite_and_in_range(name, batch):
    low, high = RANGES[name]
    values = score(name, batch)
    assert len(values) == len(batch)
    for value, (_, gold) in zip(values, batch, strict=True):
        if value is None:  # only where there is nothing to compare with
            assert answers.read_reference(gold) is None
        else:
            assert math.isfinite(value) and low <= value <= high


@pytest.mark.parametrize("name", RANGES)
@given(one=rows, other=rows, data=st.data())
def test_a_completion_is_scored_by_itself(name, one, other, data):
    assert score(name, one + other) == score(name, one) + score(name, other)
    order = data.draw(st.permutations(range(len(one))))
    assert score(name, [one[index] for index in order]) == [score(name, one)[index] for index in order]


@pytest.mark.parametrize("name", RANGES)
@given(batch=rows)
def test_a_message_is_scored_as_its_text(name, batch):
    messages = [[{"role": "assistant", "content": text}] for text, _ in batch]
    assert rewards.REWARDS[name](messages, solution=[gold for _, gold in batch]) == score(name, batch)


@pytest.mark.parametrize("name", ["accuracy", "format", "reflection"])
@given(completion=completions, space=st.sampled_from([" ", "\n", "\t", "\r\n", "  \n\n "]))
def test_white_space_does_not_matter(name, completion, space):
    gold = "#### 42"
    before = score(name, [(completion, gold)])
    assert score(name, [(space + completion + space, gold)]) == before
    assert score(name, [(re.sub(r"[ \t\r\n]+", space, completion), gold)]) == before
    assert score(name, [(re.sub(r"(<[a-z/]+>)", rf"{space}\1", completion), gold)]) == before or name == "reflection"


@given(text=wild)
def test_what_is_read_is_a_finite_number_or_none(text):
    for value in (
        answers.read_number(text),
        answers.read_answer(text),
        answers.read_reference(text),
        answers.read_last_number(text),
    ):
        assert value is None or (isinstance(value, Decimal) and value.is_finite())


def ways(number) -> list[str]:
    """Ways to write a number, with and without thousands commas and trailing zeros."""
    plain = [f"{number}", f"{number:,}"]
    plain += [f"{one}.00" if "." not in one else f"{one}0" for one in plain]
    return [form.format(one) for one in plain for form in WRITTEN]


@given(number=numbers)
def test_equal_numbers_written_differently_are_equal(number):
    for text in ways(number):
        assert answers.read_number(text) == Decimal(number), text
        assert rewards.accuracy([f"<think>so</think><answer>{text}</answer>"], solution=[f"#### {number}"]) == [1.0], (
            text
        )


@given(number=numbers, other=numbers)
def test_unequal_numbers_are_not(number, other):
    assume(Decimal(number) != Decimal(other))
    for text in ways(number):
        assert rewards.accuracy([f"<think>so</think><answer>{text}</answer>"], solution=[f"#### {other:,}"]) == [0.0], (
            text
        )


@given(completion=framed, junk=st.text(min_size=1).filter(lambda text: not text.isspace()))
def test_what_is_outside_the_two_blocks_loses_the_format(completion, junk):
    assert rewards.format([completion + junk]) == [0.0] or (completion + junk).endswith("</answer>")


@given(words=st.lists(st.sampled_from(rewards.REFLECTION_PHRASES), max_size=20))
def test_saying_a_phrase_again_earns_nothing(words):
    said = [". 5 ".join(words)]
    assert rewards.reflection(said) == rewards.reflection([said[0] + " 6 " + said[0]])


@given(completion=completions)
def test_what_is_highlighted_is_the_text(completion):
    assert "".join(piece for piece, _ in rewards.PHRASES.highlight(completion)) == completion
