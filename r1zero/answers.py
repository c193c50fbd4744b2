"""Reading completions: the strict answer, the lenient answer, the format, and GSM8K's reference answer.

Training and evaluation share these readers, so the accuracy that evaluation reports is the accuracy that training
optimises. Nothing here runs model output, raises on it, or takes more than linear time.
"""

import functools
import re
from decimal import Decimal


def text(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion in either of TRL's forms: a string, or a list with one assistant message."""
    return completion if isinstance(completion, str) else completion[0]["content"] or ""


def read_reference(solution: str) -> Decimal | None:
    """The reference answer: the number after the last `####` of GSM8K's `answer`, or None if there is none."""
    _, mark, reference = solution.rpartition("####")
    return read_number(reference) if mark else None


# A minus is a sign unless something to subtract from stands before it.
_NUMBER_ANYWHERE = re.compile(r"(?:(?<![\w)])-)?\$?[0-9][0-9,]*(?:\.[0-9]+)?")


def read_answer(completion: str) -> Decimal | None:
    """The strict answer: the one number in the one `<answer>…</answer>` block after the reasoning.

    There is no answer (None) if the reasoning or the block is never closed, or if there are two blocks. Blocks inside
    the reasoning do not count. `read_number` says what counts as one number.
    """
    after_reasoning = completion.rpartition("</think>")[2]
    if "<think>" in after_reasoning or any(after_reasoning.count(tag) != 1 for tag in ("<answer>", "</answer>")):
        return None
    answer, closed, _ = after_reasoning.partition("<answer>")[2].partition("</answer>")
    return read_number(answer) if closed else None


def read_last_number(completion: str) -> Decimal | None:
    """The lenient answer: the last number anywhere, with or without tags.

    For the second column of an evaluation only. As a reward it would pay for whatever number happens to come last.
    """
    numbers = _NUMBER_ANYWHERE.findall(completion.replace("\u2212", "-"))
    if not numbers or len(numbers[-1]) > MAX_ANSWER_CHARACTERS:
        return None
    return Decimal(re.sub("[,$]", "", numbers[-1]))


def is_formatted(completion: str) -> bool:
    """Whether the completion is exactly `<think>…</think>` then `<answer>…</answer>`, each once and not empty."""
    if any(completion.count(tag) != 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        return False
    before, _, rest = completion.partition("<think>")
    reasoning, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    return bool(closed and reasoning.strip() and answer.strip()) and not (before + between + after).strip()


MAX_ANSWER_CHARACTERS = 1000  # a longer block is prose, not a number; the limit also keeps hostile text cheap
_NUMBER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9A-Za-z.])\.[0-9]+"
_PLAIN = re.compile(rf"-?(?:{_NUMBER})")
_TOKEN = re.compile(rf"(?P<number>{_NUMBER})|(?P<operator>[-+*/×÷·^√])|(?P<word>[^\W\d_]+)|(?P<other>\S)")

# Decoration that is removed before reading, in this order. Each pattern is linear: no nested repetition.
_DECORATION = (
    (r"<<[^<>]*>>", " "),  # GSM8K's calculator annotations: 6*7 = <<6*7=42>>42
    (r"(?<=[A-Za-z])(?:\^\{?[23]\}?|[²³])", ""),  # units: 42 ft^2, 42 m²
    (r"\\(?:boxed|fbox|text[a-z]*|math[a-z]+|left|right|quad)(?![A-Za-z])", " "),
    (r"\\approx(?![A-Za-z])|=>|->|[→⇒⟹≈≃≅]", "="),
    (r"\{,\}|(?<=[0-9])(?:\\[,!]|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))", ","),  # 1{,}234 and 1\,234
    (r"\\[ ,;:!]|\\(?=[$%#&_()\[\]])", " "),
    (r"[\u2212\u2013\ufe63\uff0d]", "-"),  # the minus sign, the en dash and their wide forms
    (r"(?i)\b(?:minus|negative)\s+(?=[0-9$€£¥₹.])", "-"),
    (r"\*\*|__|[`#$€£¥₹¢%(){}\[\]]", " "),  # markdown, currency, percent, brackets
)
_SCALE_WORDS = {"hundred", "thousand", "million", "billion", "trillion", "k"}
_OPERATOR_WORDS = {"x", "e", "times", "plus", "minus", "divided", "multiplied", ":"}
_AND_A_HALF = re.compile(r"(?i)\band (?:a|one) (?:half|third|quarter)\b")


@functools.lru_cache(maxsize=8192)  # completions of a group share the reference, and often the answer
def read_number(text: str) -> Decimal | None:
    """Read a text as exactly one number.

    Removed first: thousands commas, currency signs, percent signs, a final full stop, `.00`, words and units around
    the number, `\\boxed{}` and LaTeX spacing, markdown, a Unicode minus, brackets and white space. After `=` only the
    right-hand side counts.

    Not a number: an empty text, two different numbers, an expression (`40 + 2`, `6 * 7 =`, `84/2`, `1e3`, `x > 42`,
    `3 million`, `\\frac{1}{2}`), digits other than ASCII, more than `MAX_ANSWER_CHARACTERS` characters.

    Returns:
        The exact decimal (`1,234.50` equals `1234.5`), or None. It never raises.
    """
    text = text.strip()
    if not text or len(text) > MAX_ANSWER_CHARACTERS:
        return None
    if _PLAIN.fullmatch(text):
        return Decimal(text.replace(",", ""))

    for pattern, replacement in _DECORATION:
        text = re.sub(pattern, replacement, text)
    text = text.rpartition("=")[2]
    if any(character in "\\<>≤≥≠" or (character.isnumeric() and not character.isascii()) for character in text):
        return None
    if _AND_A_HALF.search(text):
        return None

    tokens = [(match.lastgroup, match[0], match.start()) for match in _TOKEN.finditer(text)]
    positions = [index for index, token in enumerate(tokens) if token[0] == "number"]
    if len(positions) > 1 and any(token[1].lower() in _OPERATOR_WORDS for token in tokens):
        return None  # `6 x 6`, `1e1`: an expression, though the number is the same
    tokens.append(("end", "", len(text)))  # also before the first token, as tokens[-1]
    numbers = set()
    for index in positions:
        before, after = index - 1, index + 1
        value = Decimal(tokens[index][1].replace(",", ""))
        if _is_sign(tokens, before, text):
            value = -value if tokens[before][1] == "-" else value
            before -= 1
        per_unit = tokens[after][1] == "/" and tokens[after + 1][0] == "word"
        # `6 * 7`, `apples-7`, `--7`, `84/2` and `40 +` are expressions; `5/hour` is a number with its unit.
        if tokens[before][0] == "operator" or (tokens[after][0] == "operator" and not per_unit):
            return None
        if tokens[after][1].lower() in _SCALE_WORDS:
            return None
        numbers.add(value)
    return numbers.pop() if len(numbers) == 1 else None


def _is_sign(tokens: list[tuple[str, str, int]], index: int, text: str) -> bool:
    """Whether the token at `index`, before a number, is the number's sign and not an operator."""
    _, token, start = tokens[index]
    if index == 0:
        return token in ("+", "-")
    return token == "-" and tokens[index - 1][0] != "number" and not text[start - 1].isalnum()
