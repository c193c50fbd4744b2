"""The reward functions that TRL's `GRPOTrainer` calls, and the dict that names them.

Every reward is `(completions, **kwargs) -> list[float | None]`: one finite value a completion, in the order of
the completions, whatever the model wrote; None means "does not apply here" and TRL leaves it out of the sum.
A completion is a string (after a plain prompt) or a list with one message (after a conversation). TRL passes
every dataset column by name, here `solution`, GSM8K's answer text, repeated once a completion.

To add a reward: write such a function here, give it a line in `REWARDS`, and name it in a recipe's
`reward_funcs`. The function's name becomes its metric, `rewards/<name>/mean`.
"""

import importlib
import itertools
import re
from collections.abc import Callable

import gsm8k

# ---------------------------------------------------------------------------------------------------------
# The four rewards
# ---------------------------------------------------------------------------------------------------------


def accuracy(completions, solution, log_extra: Callable[[str, list], None] | None = None, **kwargs):
    """1.0 where the strict answer (`gsm8k.read_answer`) equals the gold, else 0.0; None where the gold is unreadable.

    `log_extra`, given by TRL, adds the columns `extracted_answer` and `gold_answer` to the completions table.
    """
    answers = [gsm8k.read_answer(text(completion)) for completion in completions]
    golds = [gsm8k.read_gold(answer_text) for answer_text in solution]
    if log_extra is not None:
        log_extra("extracted_answer", [None if answer is None else str(answer) for answer in answers])
        log_extra("gold_answer", [None if gold is None else str(gold) for gold in golds])
    return [None if gold is None else float(answer == gold) for answer, gold in zip(answers, golds, strict=True)]


def format(completions, **kwargs):
    """1.0 where the completion is one non-empty `<think>…</think>`, then one non-empty `<answer>…</answer>`, else 0.0.

    White space around the blocks is free; any other text outside them, and any tag that occurs twice, is not.
    """
    return [float(gsm8k.is_formatted(text(completion))) for completion in completions]


# The 16 distinct phrases of mini-r1-zero's reflection reward.
REFLECTION_PHRASES = (
    "wait",
    "possible",
    "perhaps",
    "check",
    "maybe",
    "let me",
    "would be",
    "but the",
    "wait but",
    "check if",
    "but how",
    "wait no",
    "but wait",
    "let me check",
    "let me think",
    "but let me",
)


def reflection(completions, **kwargs):
    """0.1 for each of `REFLECTION_PHRASES` that occurs, each counted once: from 0.0 to 1.6.

    Whole words in any case; punctuation and line breaks between the words do not matter, so "Wait, but" is
    "wait but". Saying a phrase again earns nothing.
    """
    return [len(reflection_phrases(text(completion))) / 10 for completion in completions]


def length(completions, **kwargs):
    """Characters ÷ 5000, at most 1.0."""
    return [min(len(text(completion)) / 5000, 1.0) for completion in completions]


# ---------------------------------------------------------------------------------------------------------
# The shaping rewards, paid only where the answer is right. In the plain sum of four, a long and ruminating
# wrong answer can outscore a short right one.
# ---------------------------------------------------------------------------------------------------------


def reflection_if_correct(completions, solution, **kwargs):
    """`reflection` where `accuracy` is 1.0, else 0.0; None where the gold is unreadable."""
    return _if_correct(reflection, completions, solution)


def length_if_correct(completions, solution, **kwargs):
    """`length` where `accuracy` is 1.0, else 0.0; None where the gold is unreadable."""
    return _if_correct(length, completions, solution)


REWARDS = {
    "accuracy": accuracy,
    "format": format,
    "reflection": reflection,
    "length": length,
    "reflection_if_correct": reflection_if_correct,
    "length_if_correct": length_if_correct,
}

# TRL's own rewards by their TRL names. Those with arguments are made for a completion length; DAPO punishes over
# the last fifth of it (arXiv:2503.14476, section 3.4).
TRL_REWARDS = {
    "accuracy_reward": None,
    "reasoning_accuracy_reward": None,
    "think_format_reward": None,
    "get_cosine_scaled_reward": lambda max_length: {"max_len": max_length},
    "get_repetition_penalty_reward": lambda max_length: {},
    "get_soft_overlong_punishment": lambda max_length: {
        "max_completion_len": max_length,
        "soft_punish_cache": max_length // 5,
    },
}


def load(name: str, max_completion_length: int) -> Callable[..., list[float | None]]:
    """The reward of that name.

    Args:
        name: a key of `REWARDS` or `TRL_REWARDS`, or a dotted import path such as `my_rewards.brevity`.
        max_completion_length: in tokens, for the TRL rewards that depend on it.

    Raises:
        ValueError: there is no such reward; the message is one line and lists the choices.
        ImportError: it needs a package that is not installed; the message names it.
    """
    if name in REWARDS:
        return REWARDS[name]
    if name in TRL_REWARDS:
        import trl.rewards
        from trl.import_utils import is_math_verify_available

        if ("accuracy" in name or "cosine" in name) and not is_math_verify_available():
            raise ImportError(f"reward {name} needs the package math-verify: pip install math-verify")
        reward, arguments = getattr(trl.rewards, name), TRL_REWARDS[name]
        return reward if arguments is None else reward(**arguments(max_completion_length))
    module, dot, function = name.rpartition(".")
    if dot:
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"reward {name} cannot be imported: {error}") from error
    raise ValueError(
        f"unknown reward {name!r}: choose from {', '.join(REWARDS)}, TRL's {', '.join(TRL_REWARDS)}, "
        "or give a dotted import path"
    )


# ---------------------------------------------------------------------------------------------------------
# Reading a completion
# ---------------------------------------------------------------------------------------------------------


def text(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion in either of TRL's forms."""
    return completion if isinstance(completion, str) else completion[0]["content"] or ""


def _if_correct(reward, completions, solution) -> list[float | None]:
    correct = accuracy(completions, solution)
    return [right and right * value for right, value in zip(correct, reward(completions), strict=True)]


def reflection_phrases(completion: str) -> set[str]:
    """Those of `REFLECTION_PHRASES` that occur in a completion's text, see `reflection`."""
    completion = completion.lower()
    found = set()
    for first_word, (pattern, phrases) in _PATTERNS.items():
        start = completion.find(first_word)  # several times faster than a pattern, and mostly there is nothing to find
        if start >= 0:
            for match in pattern.finditer(completion, start):
                found |= phrases[match.lastindex]
    return found


def highlight(completion: str) -> list[tuple[str, str | None]]:
    """A completion's text in pieces, each with `"tag"`, `"phrase"` (one that `reflection` pays) or None, to show it."""
    lowered = "".join(character.lower()[0] for character in completion)  # a few letters grow when they are lowered
    kinds: list[str | None] = [None] * len(completion)
    spans = [(match.span(), "phrase") for pattern, _ in _PATTERNS.values() for match in pattern.finditer(lowered)]
    spans += [(match.span(), "tag") for match in re.finditer(r"</?(?:think|answer)>", completion)]
    for (start, end), kind in spans:
        kinds[start:end] = [kind] * (end - start)
    pieces = itertools.groupby(zip(completion, kinds, strict=True), key=lambda pair: pair[1])
    return [("".join(character for character, _ in piece), kind) for kind, piece in pieces]


def _compile(first_word: str) -> tuple[re.Pattern, list[set[str]]]:
    """A pattern for all phrases that begin with a word, and by its groups what each match says.

    The pattern begins with a literal, which `re` searches for fast, and asks only then whether a word begins
    there. The longest phrase is tried first; where it matches, so do those that it begins with.
    """
    phrases = sorted((p for p in REFLECTION_PHRASES if p.split()[0] == first_word), key=len, reverse=True)
    between = r"[^\w<]+"  # white space and punctuation, but no tag: "let me</think>" is not "let me think"
    endings = "|".join("(" + "".join(between + word for word in phrase.split()[1:]) + ")" for phrase in phrases)
    pattern = re.compile(rf"{first_word}(?<![^\W_]{first_word})(?:{endings})(?![^\W_])")
    return pattern, [set(), *({p for p in phrases if f"{phrase} ".startswith(f"{p} ")} for phrase in phrases)]


_PATTERNS = {word: _compile(word) for word in dict.fromkeys(phrase.split()[0] for phrase in REFLECTION_PHRASES)}
