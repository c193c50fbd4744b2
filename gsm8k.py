"""The contract between prompt and answer: GSM8K in, one prompt out, one number read back.

Training and evaluation both ask with `to_prompt` and both read with `read_answer`, so an accuracy measured
by one is the accuracy the other optimises. The two sit in one file because they are one contract: the
system prompt asks for `<answer> … </answer>`, and the parser reads exactly that.

GSM8K (Cobbe et al. 2021, arXiv:2110.14168) has two columns: `question`, and `answer`, which is a few worked
lines and a last line `#### <number>`.
"""

import functools
import re
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

# DeepSeek-R1-Zero's template (arXiv:2501.12948, table 1), up to where the question goes.
SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
)

PromptStyle = Literal["chat", "r1_zero", "question"]

# The validation rows are the same whatever `--seed` a run trains with, so that runs can be compared on them.
VALIDATION_SEED = 0


class DatasetError(ValueError):
    """The dataset cannot be used as GSM8K; the message is one line and says how to mend it."""


# ---------------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------------


def to_prompt(question: str, style: PromptStyle) -> str | list[dict[str, str]]:
    """The prompt of one question, in the form that TRL's `GRPOTrainer` takes.

    Args:
        question: GSM8K's `question`.
        style: `chat`, the R1-Zero instructions as system message and the question as user message;
            `r1_zero`, the same as DeepSeek-R1-Zero's plain text, for base models;
            `question`, the question alone as user message, for models with a short context.

    Returns:
        A string (`r1_zero`) or a list of messages (`chat`, `question`).
    """
    if style == "r1_zero":
        return f"{SYSTEM_PROMPT} User: {question}\nAssistant:"
    user = {"role": "user", "content": question}
    if style == "chat":
        return [{"role": "system", "content": SYSTEM_PROMPT}, user]
    if style == "question":
        return [user]
    raise ValueError(f"unknown prompt style {style!r}: choose from {', '.join(get_args(PromptStyle))}")


def end_completions(tokenizer, style: str, declared: list[int] | None = None) -> list[int]:
    """Make sure that a completion can end; sets the tokenizer's pad token where it is one of the end tokens.

    A base model was never taught its chat template: it may end a turn with the template's end-of-turn token
    (`<|im_end|>`) or a text with the end-of-text token (`<|endoftext|>`), so after a conversation either ends a
    completion. Padding with one of them would hide it from a loss that masks padding, so another token pads.

    Args:
        tokenizer: the model's; its pad token may be changed.
        style: the prompt style, see `to_prompt`.
        declared: the end tokens that the model's generation config declares.

    Returns:
        The ids of the end tokens, the tokenizer's own end-of-text token first.
    """
    end_token_ids = list(dict.fromkeys(([tokenizer.eos_token_id] if tokenizer.eos_token else []) + (declared or [])))
    if style != "r1_zero":
        turn = [*to_prompt("question", "question"), {"role": "assistant", "content": "ANSWER"}]
        after_turn = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("ANSWER")[2]
        token_ids = tokenizer(after_turn, add_special_tokens=False)["input_ids"]
        if token_ids and token_ids[0] in tokenizer.added_tokens_decoder and token_ids[0] not in end_token_ids:
            end_token_ids.append(token_ids[0])
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in end_token_ids:
        pad_tokens = [
            token.content
            for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
            if "pad" in token.content.lower() and token_id not in end_token_ids
        ]
        # With no token to spare TRL pads with the end token, which GRPO's loss, masked by length, can bear.
        if pad_tokens:
            tokenizer.pad_token = pad_tokens[0]
    return end_token_ids


# ---------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------


def load(name: str, config: str | None = None, split: str = "train"):
    """One split of GSM8K, each gold read and found to be a number.

    Args:
        name: a dataset on the Hugging Face hub (or in its local cache), such as `openai/gsm8k`; or a local
            folder holding `<split>.jsonl`, `<split>.json`, `<split>.parquet` or the hub's numbered parquet
            files. Of a folder, only the files of the split that was asked for are opened.
        config: the hub dataset's configuration, `main` for `openai/gsm8k`; not used for a folder.
        split: `train` or `test`.

    Returns:
        A `datasets.Dataset` with the columns `question` and `answer`, both strings.

    Raises:
        DatasetError: it is not there, is not in GSM8K's schema, or has a gold that cannot be read.
    """
    import datasets

    folder = Path(name).expanduser()
    if folder.is_dir():
        patterns = (f"{split}.jsonl", f"{split}.json", f"{split}.parquet", f"{split}-*-of-*.parquet")
        files = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), None)
        if files is None:
            found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            raise DatasetError(f"{folder} holds no {split}.jsonl, {split}.json or {split}.parquet (it holds: {found})")
        source = files[0]
        if source.stat().st_size == 0:
            raise DatasetError(f"{source} is empty")
        builder = "parquet" if source.suffix == ".parquet" else "json"
        try:
            dataset = datasets.load_dataset(builder, data_files={split: [str(file) for file in files]}, split=split)
        except datasets.exceptions.DatasetGenerationError as error:
            raise DatasetError(f"{source} cannot be read as {builder}: {_first_line(error)}") from error
    else:
        source = name
        if name.startswith((".", "/", "~")):
            raise DatasetError(f"there is no folder {name}: give a folder with {split}.jsonl, or a hub dataset's name")
        try:
            dataset = datasets.load_dataset(name, config, split=split)
        except FileNotFoundError as error:  # `DatasetNotFoundError` and a missing cache entry are both this
            raise DatasetError(
                f"dataset {name} is neither a local folder nor found on the hub or in its cache: {_first_line(error)}"
            ) from error
        except ConnectionError as error:
            raise DatasetError(
                f"dataset {name} is not in the cache and the hub cannot be reached: {_first_line(error)}"
            ) from error
        except ValueError as error:  # an unknown configuration or split, which `datasets` names with the choices
            raise DatasetError(f"dataset {name}: {_first_line(error)}") from error

    for column in ("question", "answer"):
        if column not in dataset.column_names:
            raise DatasetError(
                f"{source} has no column {column!r} (it has: {', '.join(dataset.column_names)}); "
                "GSM8K's schema is {question, answer}"
            )
    if len(dataset) == 0:
        raise DatasetError(f"{source} has no rows")
    dataset = dataset.select_columns(["question", "answer"])
    for row, (question, answer) in enumerate(zip(dataset["question"][:], dataset["answer"][:], strict=True), start=1):
        if not isinstance(question, str) or not question.strip():
            raise DatasetError(f"{source}, row {row}: `question` is not a text ({question!r})")
        if not isinstance(answer, str) or read_gold(answer) is None:
            raise DatasetError(
                f"{source}, row {row}: the gold cannot be read; `answer` must end in a line `#### <number>`, "
                f"and ends in {str(answer)[-40:]!r}"
            )
    return dataset


def to_training_set(dataset, style: str, validation_size: int = 0):
    """The rows as `GRPOTrainer` wants them, with a fixed part of them held out.

    Args:
        dataset: what `load` returned for the train split, `n` rows.
        style: the prompt style, see `to_prompt`.
        validation_size: how many rows to hold out; the same rows for every run.

    Returns:
        `(train, validation)`: datasets with the columns `prompt` and `solution` (GSM8K's answer text), of
        `n - validation_size` and `validation_size` rows; `validation` is None for a size of 0.

    Raises:
        DatasetError: holding out so many rows would leave none to train on.
    """
    if not 0 <= validation_size < len(dataset):
        raise DatasetError(
            f"validation_size {validation_size} cannot be held out of {len(dataset)} rows: "
            f"choose from 0 to {len(dataset) - 1}"
        )
    dataset = dataset.map(
        lambda row: {"prompt": to_prompt(row["question"], style), "solution": row["answer"]},
        remove_columns=["question", "answer"],
    )
    if validation_size == 0:
        return dataset, None
    split = dataset.train_test_split(test_size=validation_size, seed=VALIDATION_SEED)
    return split["train"], split["test"]


def _first_line(error: BaseException) -> str:
    """The most telling line of an exception: its cause's, where it only wraps one."""
    return str(error.__cause__ or error).strip().split("\n")[0]


# ---------------------------------------------------------------------------------------------------------
# Reading answers
# ---------------------------------------------------------------------------------------------------------


def read_gold(solution: str) -> Decimal | None:
    """The number after the last `####` of GSM8K's answer text, or None where there is none."""
    _, mark, gold = solution.rpartition("####")
    return read_number(gold) if mark else None


# A minus is a sign where nothing stands before it to be subtracted from.
_NUMBER_ANYWHERE = re.compile(r"(?:(?<![\w)])-)?\$?[0-9][0-9,]*(?:\.[0-9]+)?")


def read_answer(completion: str) -> Decimal | None:
    """The strict answer: the one number in the one `<answer>…</answer>` block after the reasoning.

    Blocks inside the reasoning do not count, reasoning that is never closed has no answer, and neither have
    two blocks or a block that is not closed. What counts as one number: see `read_number`.
    """
    after_reasoning = completion.rpartition("</think>")[2]
    if "<think>" in after_reasoning:
        return None
    if after_reasoning.count("<answer>") != 1 or after_reasoning.count("</answer>") != 1:
        return None
    _, _, block = after_reasoning.partition("<answer>")
    answer, closed, _ = block.partition("</answer>")
    return read_number(answer) if closed else None


def read_last_number(completion: str) -> Decimal | None:
    """The lenient answer: the last number anywhere, tags or none.

    For evaluation's second column only: as a reward it would pay for whatever number happened to come last.
    """
    numbers = _NUMBER_ANYWHERE.findall(completion.replace("\u2212", "-"))
    if not numbers or len(numbers[-1]) > MAX_ANSWER_CHARACTERS:
        return None
    return Decimal(re.sub("[,$]", "", numbers[-1]))


def is_formatted(completion: str) -> bool:
    """Whether the whole completion is `<think>…</think>` and `<answer>…</answer>`, each once and not empty."""
    completion = completion.strip()
    if not (completion.startswith("<think>") and completion.endswith("</answer>")):
        return False
    if completion.find("<think>", 1) >= 0:
        return False
    reasoning, closed, rest = completion[len("<think>") :].partition("</think>")
    between, opened, answer = rest.removesuffix("</answer>").partition("<answer>")
    return (
        bool(closed and opened)
        and not any(tag in text for text in (reasoning, answer) for tag in ("</think>", "<answer>", "</answer>"))
        and bool(reasoning and not reasoning.isspace())
        and (not between or between.isspace())
        and bool(answer and not answer.isspace())
    )


# Longer than this is prose, not a number; the bound also keeps hostile text cheap.
MAX_ANSWER_CHARACTERS = 1000

_NUMBER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9A-Za-z.])\.[0-9]+"
_PLAIN = re.compile(rf"-?(?:{_NUMBER})")
_TOKEN = re.compile(rf"(?P<number>{_NUMBER})|(?P<operator>[-+*/×÷·^√])|(?P<word>[^\W\d_]+)|(?P<other>\S)")

# What is read through, in order. Each pattern is linear: no repetition inside another.
_READ_THROUGH = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
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
]
_SCALE_WORDS = {"hundred", "thousand", "million", "billion", "trillion", "k"}
_OPERATOR_WORDS = {"x", "e", "times", "plus", "minus", "divided", "multiplied", ":"}
_AND_A_HALF = re.compile(r"(?i)\band (?:a|one) (?:half|third|quarter)\b")


@functools.lru_cache(maxsize=8192)  # a group of completions shares its gold, and often its answers
def read_number(text: str) -> Decimal | None:
    """Read a text as exactly one number, or as none.

    Read through: thousands commas, currency signs, percent, a trailing full stop, `.00`, words and units
    around the number, `\\boxed{}` and LaTeX's spacing, markdown, a Unicode minus, brackets, spaces and
    newlines. After `=` only the right-hand side counts.

    Not a number: nothing to read, two different numbers, an expression (`40 + 2`, `6 * 7 =`, `84/2`, `1e3`,
    `x > 42`, `3 million`, `\\frac{1}{2}`), a number in other than ASCII digits, more than
    `MAX_ANSWER_CHARACTERS` characters.

    Returns:
        The exact decimal (`1,234.50` and `1234.5` are equal), or None. It never raises.
    """
    text = text.strip()
    if not text or len(text) > MAX_ANSWER_CHARACTERS:
        return None
    if _PLAIN.fullmatch(text):
        return Decimal(text.replace(",", ""))

    for pattern, replacement in _READ_THROUGH:
        text = pattern.sub(replacement, text)
    text = text.rpartition("=")[2]
    if any(character in "\\<>≤≥≠" or (character.isnumeric() and not character.isascii()) for character in text):
        return None
    if _AND_A_HALF.search(text):
        return None

    tokens = [(match.lastgroup, match.group(), match.start()) for match in _TOKEN.finditer(text)]
    positions = [index for index, token in enumerate(tokens) if token[0] == "number"]
    if len(positions) > 1 and any(token[1].lower() in _OPERATOR_WORDS for token in tokens):
        return None  # `6 x 6`, `1e1`: the same number twice, but an expression
    numbers = set()
    for index in positions:
        before, after = index - 1, index + 1
        value = Decimal(tokens[index][1].replace(",", ""))
        if before >= 0 and _is_sign(tokens, before, text):
            value = -value if tokens[before][1] == "-" else value
            before -= 1
        if before >= 0 and tokens[before][0] == "operator":
            return None  # `6 * 7`, `apples-7`, `--7`
        if after < len(tokens) and tokens[after][0] == "operator":
            per_unit = tokens[after][1] == "/" and after + 1 < len(tokens) and tokens[after + 1][0] == "word"
            if not per_unit:  # `5/hour` is a number with its unit; `84/2` and `40 +` are not finished
                return None
        if after < len(tokens) and tokens[after][1].lower() in _SCALE_WORDS:
            return None
        numbers.add(value)
    return numbers.pop() if len(numbers) == 1 else None


def _is_sign(tokens: list[tuple[str, str, int]], index: int, text: str) -> bool:
    """Whether the token at `index`, which stands before a number, is that number's sign and not an operator."""
    kind, token, start = tokens[index]
    if kind != "operator" or token not in "+-":
        return False
    if index == 0:
        return True
    if token == "+" or tokens[index - 1][0] == "number":
        return False
    return not text[start - 1].isalnum()
