"""The reward functions that TRL's `GRPOTrainer` calls, and the dict that names them.

A reward is a function `(completions, **kwargs) -> list[float | None]`. It returns one finite number per completion, in
order, and never raises, whatever the model wrote. None means "does not apply"; TRL leaves it out of the sum. A
completion is a string or a list with one message; `text` reads both. TRL passes every dataset column as a keyword,
here `solution`: GSM8K's `answer`, once per completion. To add a reward, write the function here, add it to `REWARDS`,
and name it in a recipe's `reward_funcs`. Its metric is `rewards/<function name>/mean`.
"""

from collections.abc import Callable

from r1zero.answers import is_formatted, read_answer, read_reference, text
from r1zero.phrases import Phrases


def accuracy(completions, solution, log_extra: Callable[[str, list], None] | None = None, **kwargs):
    """1.0 if the strict answer (`r1zero.answers.read_answer`) equals the reference answer, else 0.0.

    None if the reference answer cannot be read. `log_extra`, which TRL passes, adds the columns `extracted_answer`
    and `gold_answer` (the reference answer) to the completions table.
    """
    answers = [read_answer(text(completion)) for completion in completions]
    references = [read_reference(answer_text) for answer_text in solution]
    if log_extra is not None:
        log_extra("extracted_answer", [None if answer is None else str(answer) for answer in answers])
        log_extra("gold_answer", [None if reference is None else str(reference) for reference in references])
    return [
        None if reference is None else float(answer == reference)
        for answer, reference in zip(answers, references, strict=True)
    ]


def format(completions, **kwargs):
    """1.0 for one `<think>…</think>`, then one `<answer>…</answer>`, neither empty, and nothing else; else 0.0."""
    return [float(is_formatted(text(completion))) for completion in completions]


# The 16 distinct phrases of mini-r1-zero's reflection reward.
REFLECTION_PHRASES = (
    "wait", "possible", "perhaps", "check", "maybe", "let me", "would be", "but the", "wait but", "check if",
    "but how", "wait no", "but wait", "let me check", "let me think", "but let me",
)  # fmt: skip
PHRASES = Phrases(REFLECTION_PHRASES)


def reflection(completions, **kwargs):
    """0.1 for each of `REFLECTION_PHRASES` that occurs, however often, as whole words in any case: 0.0 to 1.6.

    Punctuation and line breaks between the words do not matter, so "Wait, but" is "wait but".
    """
    return [len(PHRASES.find(text(completion))) / 10 for completion in completions]


def length(completions, **kwargs):
    """Characters ÷ 5000, at most 1.0."""
    return [min(len(text(completion)) / 5000, 1.0) for completion in completions]


# In the plain sum of the four rewards above, a long wrong answer with many phrases can beat a short right one. The two
# below are paid only if the answer is right.


def reflection_if_correct(completions, solution, **kwargs):
    """`reflection` if `accuracy` is 1.0, else 0.0; None if the reference answer cannot be read."""
    return _if_correct(reflection, completions, solution)


def length_if_correct(completions, solution, **kwargs):
    """`length` if `accuracy` is 1.0, else 0.0; None if the reference answer cannot be read."""
    return _if_correct(length, completions, solution)


def _if_correct(reward: Callable, completions, solution) -> list[float | None]:
    correct = accuracy(completions, solution)
    return [right and right * value for right, value in zip(correct, reward(completions), strict=True)]


REWARDS = {
    reward.__name__: reward
    for reward in (accuracy, format, reflection, length, reflection_if_correct, length_if_correct)
}
