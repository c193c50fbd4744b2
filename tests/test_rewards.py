"""The rewards: their values, other projects' failures, and text that means harm."""

import math
import pickle
import threading

import pytest

import rewards
from benchmarks.rewards import hostile_completions
from r1zero import reward_funcs
from r1zero.recipe import RequestError

GOLD = "6*7=<<6*7=42>>42\n#### 42"
GOOD = "<think>6*7=42</think>\n<answer>42</answer>"


def score(name, completion, solution=GOLD):
    """One reward of one completion, which must be the same in both of TRL's forms."""
    plain = rewards.REWARDS[name]([completion], solution=[solution], prompts=["q"], trainer_state=None)
    message = rewards.REWARDS[name]([[{"role": "assistant", "content": completion}]], solution=[solution])
    assert plain == message
    return plain[0]


# Values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (GOOD, 1.0),
        ("  \n" + GOOD + " \n", 1.0),
        ("<think>\nfirst\nsecond\n</think>\n\n\n<answer>\n42\n</answer>", 1.0),
        ("<think>a < b and <b>c</b></think><answer>42</answer>", 1.0),
        ("<answer>42</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<think></think><answer>42</answer>", 0.0),
        ("<think> \n</think><answer>42</answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a</think>so<answer>42</answer>", 0.0),
        (GOOD + "!", 0.0),
        ("!" + GOOD, 0.0),
        (GOOD + GOOD, 0.0),
        ("<think>a</think><think>b</think><answer>42</answer>", 0.0),
        ("<think>a</think><answer>42</answer><answer>42</answer>", 0.0),
        ("<think>a<answer>42</answer></think>", 0.0),
        ("<answer>42</answer><think>a</think>", 0.0),
        ("<think>a</answer></think><answer>42</answer>", 0.0),
        ("<Think>a</Think><Answer>42</Answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format(completion, value):
    assert score("format", completion) == value


@pytest.mark.parametrize(
    ("completion", "phrases"),
    [
        ("6*7=42", set()),
        ("Wait.", {"wait"}),
        ("Wait, but", {"wait", "wait but"}),
        ("WAIT\n\nBUT", {"wait", "wait but"}),
        ("“Wait” — no…", {"wait", "wait no"}),
        ("But wait: let me check.", {"but wait", "wait", "let me", "check", "let me check"}),
        ("But let me think", {"let me", "let me think", "but let me"}),
        ("check if", {"check", "check if"}),
        ("waiting, checked, butter the bread, maybes", set()),
        ("await uncheck", set()),
        ("let me</think>think", {"let me"}),
        ("let <b>me</b>", set()),
        ("would be, but the but how", {"would be", "but the", "but how"}),
        ("possible perhaps maybe", {"possible", "perhaps", "maybe"}),
    ],
)
def test_reflection_counts_each_phrase_once_as_whole_words(completion, phrases):
    assert rewards.PHRASES.find(completion) == phrases
    assert score("reflection", completion) == pytest.approx(0.1 * len(phrases))
    assert score("reflection", f"{completion} … {completion}") >= score("reflection", completion)


@pytest.mark.parametrize(
    "text", ["", "İ wait", "But wait, but the</think> <answer>let me\ncheck if</answer", "awaits checks"]
)
def test_what_is_highlighted_is_what_is_paid(text):
    pieces = rewards.PHRASES.highlight(text)
    assert "".join(piece for piece, _ in pieces) == text
    shown = {phrase for piece, kind in pieces if kind == "phrase" for phrase in rewards.PHRASES.find(piece)}
    assert shown == rewards.PHRASES.find(text)
    tags = [piece for piece, kind in pieces if kind == "tag"]
    assert tags == [tag for tag in ("</think>", "<answer>") if tag in text]


def test_reflection_goes_from_0_to_16_tenths():
    assert len(set(rewards.REFLECTION_PHRASES)) == 16
    assert score("reflection", " | ".join(rewards.REFLECTION_PHRASES)) == pytest.approx(1.6)


def test_length_is_characters_over_5000_and_at_most_1():
    assert [score("length", "a" * count) for count in (0, 500, 5000, 6000)] == [0.0, 0.1, 1.0, 1.0]


@pytest.mark.parametrize("name", ["reflection", "length"])
def test_shaping_rewards_are_paid_only_where_the_answer_is_right(name):
    wrong = GOOD.replace("<answer>42", "<answer>43").replace("6*7", "wait, 6*7")
    right = wrong.replace("43", "42")
    assert score(f"{name}_if_correct", right) == score(name, right) > 0
    assert score(f"{name}_if_correct", wrong) == 0.0 < score(name, wrong)
    assert score(f"{name}_if_correct", right, "no gold") is None


def test_accuracy_tells_the_completions_table_what_it_read():
    columns = {}
    rewards.accuracy([GOOD, "?"], solution=[GOLD, GOLD], log_extra=columns.__setitem__)
    assert columns == {"extracted_answer": ["42", None], "gold_answer": ["42", "42"]}


# How other projects' rewards fail ------------------------------------------------------------------------


def test_multi_line_completions_match_the_format():
    assert score("format", "<think>\none\ntwo\n</think>\n<answer>\n42\n</answer>") == 1.0


def test_currency_commas_and_full_stops_are_read_through():
    assert score("accuracy", "<answer>$1,234.</answer>", "#### 1,234") == 1.0


def test_the_sign_counts():
    assert score("accuracy", "<answer>-7</answer>", "#### 7") == 0.0
    assert score("accuracy", "<answer>7</answer>", "#### -7") == 0.0
    assert score("accuracy", "<answer>-7</answer>", "#### -7") == 1.0


def test_a_gold_with_a_comma_is_read():
    assert score("accuracy", "<answer>1234</answer>", "#### 1,234") == 1.0


def test_not_the_last_number_anywhere():
    assert score("accuracy", "<answer>42</answer> There are 3 apples") == 1.0
    assert score("accuracy", "maybe 42 … I give up") == 0.0


def test_two_word_phrases_match_and_repeating_earns_nothing():
    assert score("reflection", "let me") == pytest.approx(0.1)
    assert score("reflection", "wait " * 500) == pytest.approx(0.1)


def test_junk_earns_next_to_nothing_by_length():
    assert score("length", "x" * 501) == pytest.approx(0.1002)
    assert score("length_if_correct", "x" * 501) == 0.0


def test_doubled_and_empty_blocks_and_trailing_junk_lose_the_format_and_a_leading_space_does_not():
    for bad in (GOOD * 2, "<think></think><answer></answer>", GOOD + " junk"):
        assert score("format", bad) == 0.0
    assert score("format", " " + GOOD) == 1.0


def test_a_plain_answer_needs_no_box():
    assert score("accuracy", "<answer>42</answer>") == score("accuracy", "<answer>\\boxed{42}</answer>") == 1.0


def test_an_unreadable_gold_is_never_right():
    assert score("accuracy", "<answer>?</answer>", "#### ?") is None
    assert score("accuracy", "", "") is None


def test_a_corrected_box_is_not_judged_by_the_first():
    corrected = "<think>\\boxed{41} … no, \\boxed{42}</think><answer>42</answer>"
    assert score("accuracy", corrected) == 1.0
    assert score("accuracy", corrected, "#### 41") == 0.0


def test_rewards_work_off_the_main_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(score("accuracy", GOOD)))
    thread.start()
    thread.join()
    assert seen == [1.0]


# Text that means harm ------------------------------------------------------------------------------------

HOSTILE = hostile_completions()


@pytest.mark.parametrize("name", rewards.REWARDS)
@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_never_raises(name, completion):
    """How long each takes is measured by benchmarks/rewards.py."""
    value = rewards.REWARDS[name]([completion], solution=[GOLD])[0]
    assert value is not None and math.isfinite(value) and 0.0 <= value <= 1.6


# Names ---------------------------------------------------------------------------------------------------


def test_every_reward_pickles_and_its_name_is_its_metric():
    for name, reward in rewards.REWARDS.items():
        assert reward.__name__ == name
        assert pickle.loads(pickle.dumps(reward)) is reward


@pytest.mark.parametrize("name", reward_funcs.TRL_REWARDS)
def test_trls_own_rewards_can_be_named(name):
    reward = reward_funcs.load(name, rewards.REWARDS, 384)
    message = [{"role": "assistant", "content": "<think>\nso\n</think>\n\\boxed{42}"}]
    values = reward(completions=[message], completion_ids=[[1] * 100], prompts=["q"], solution=["$42$"])
    assert len(values) == 1 and math.isfinite(values[0])


def test_a_reward_of_ones_own_is_named_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(completions, **kwargs):\n    return [0.5 for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert reward_funcs.load("my_rewards.brevity", rewards.REWARDS, 8)(completions=["x"]) == [0.5]
    with pytest.raises(RequestError, match=r"my_rewards\.depth cannot be imported"):
        reward_funcs.load("my_rewards.depth", rewards.REWARDS, 8)


def test_an_unknown_reward_lists_the_choices():
    with pytest.raises(RequestError, match="unknown reward 'acuracy': choose from accuracy, format, reflection"):
        reward_funcs.load("acuracy", rewards.REWARDS, 8)
