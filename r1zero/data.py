"""GSM8K in, prompts out.

GSM8K (Cobbe et al. 2021, arXiv:2110.14168) has two columns: `question`, and `answer`, a few lines of working and a
last line `#### <number>`. Training and evaluation build their prompts with `to_prompt`. To use a dataset with other
column names, rename them to these two in `load`.
"""

from pathlib import Path
from typing import Literal, get_args

import datasets
import huggingface_hub

from r1zero.answers import read_reference
from r1zero.recipe import RequestError

# DeepSeek-R1-Zero's template (arXiv:2501.12948, table 1), up to the question.
SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
)

PromptStyle = Literal["chat", "r1_zero", "question"]
OFFLINE_FIX = "`bash rl_grpo.sh --prefetch` downloads it where there is a network, HF_HUB_OFFLINE=0 looks for it now"


def to_prompt(question: str, style: PromptStyle) -> str | list[dict[str, str]]:
    """The prompt for GSM8K's `question`, in the form that TRL's `GRPOTrainer` takes: a string or a list of messages.

    `chat` is the R1-Zero instructions as system message and the question as user message; `r1_zero` the same as
    DeepSeek-R1-Zero's plain text, for base models; `question` only the question as user message, for models with a
    short context. Raises `ValueError` for another style.
    """
    if style == "r1_zero":
        return f"{SYSTEM_PROMPT} User: {question}\nAssistant:"
    user = {"role": "user", "content": question}
    if style == "chat":
        return [{"role": "system", "content": SYSTEM_PROMPT}, user]
    if style == "question":
        return [user]
    raise ValueError(f"unknown prompt style {style!r}: choose from {', '.join(get_args(PromptStyle))}")


def load(name: str, config: str | None = None, split: str = "train"):
    """Load one split, `train` or `test`, and check that each reference answer can be read.

    `name` is a dataset on the Hugging Face hub (or in its local cache), such as `openai/gsm8k` with the configuration
    `config` `main`; or a local folder with `<split>.jsonl`, `.json`, `.parquet` or the hub's numbered parquet files,
    of which only this split's are opened. Returns a `datasets.Dataset` with the string columns `question` and `answer`.
    Raises `RequestError` if it is not found, not in GSM8K's schema, or a reference answer cannot be read.
    """
    source, kind, options = name, "dataset", {"path": name, "name": config}
    if (folder := Path(name).expanduser()).is_dir():
        patterns = (f"{split}.jsonl", f"{split}.json", f"{split}.parquet", f"{split}-*-of-*.parquet")
        files = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), None)
        if files is None:
            found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            raise RequestError(f"{folder} holds no {split}.jsonl, {split}.json or {split}.parquet (it holds: {found})")
        if (source := files[0]).stat().st_size == 0:
            raise RequestError(f"{source} is empty")
        kind = "parquet" if source.suffix == ".parquet" else "json"
        options = {"path": kind, "data_files": {split: [str(file) for file in files]}}
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RequestError(f"there is no folder {name}: give a folder with {split}.jsonl, or the name of a hub dataset")
    try:
        dataset = datasets.load_dataset(**options, split=split)
    except datasets.exceptions.DatasetGenerationError as error:
        raise RequestError(f"{source} cannot be read as {kind}: {_first_line(error)}") from error
    except (FileNotFoundError, ConnectionError) as error:  # the first if it is not in the cache either
        reason = OFFLINE_FIX if huggingface_hub.constants.HF_HUB_OFFLINE else _first_line(error)
        tried = "neither a local folder nor found on the hub or in its cache"
        raise RequestError(f"dataset {name} is {tried}: {reason}") from error
    except ValueError as error:  # an unknown configuration or split; `datasets` lists the choices
        raise RequestError(f"dataset {name}: {_first_line(error)}") from error

    for column in ("question", "answer"):
        if column not in dataset.column_names:
            found = f"{source} has no column {column!r} (it has: {', '.join(dataset.column_names)})"
            raise RequestError(f"{found}; GSM8K's schema is {{question, answer}}")
    if len(dataset) == 0:
        raise RequestError(f"{source} has no rows")
    dataset = dataset.select_columns(["question", "answer"])
    for row, (question, answer) in enumerate(zip(dataset["question"][:], dataset["answer"][:], strict=True), start=1):
        if not isinstance(question, str) or not question.strip():
            raise RequestError(f"{source}, row {row}: `question` is not a text ({question!r})")
        if not isinstance(answer, str) or read_reference(answer) is None:
            fix = f"`answer` must end in a line `#### <number>`, and ends in {str(answer)[-40:]!r}"
            raise RequestError(f"{source}, row {row}: the reference answer cannot be read; {fix}")
    return dataset


def to_training_set(dataset, style: PromptStyle, validation_size: int = 0):
    """Turn the rows of `load` into prompts and hold out `validation_size` of them, the same for every `--seed`.

    Returns `(train, validation)`: datasets with the columns `prompt`, see `to_prompt`, and `solution` (GSM8K's
    `answer`); the second is None for a size of 0. Raises `RequestError` if no rows would be left to train on.
    """
    if not 0 <= validation_size < (rows := len(dataset)):
        problem = f"validation_size {validation_size} cannot be held out of {rows} rows"
        raise RequestError(f"{problem}: choose from 0 to {rows - 1}")
    dataset = dataset.map(lambda row: {"prompt": to_prompt(row["question"], style)}, remove_columns="question")
    dataset = dataset.rename_column("answer", "solution")
    if validation_size == 0:
        return dataset, None
    # Every run holds out the same rows, so that runs can be compared on them.
    split = dataset.train_test_split(test_size=validation_size, seed=0)
    return split["train"], split["test"]


def prepare(request):
    """The train and validation sets of a request, see `to_training_set`; `RequestError` if they cannot be used."""
    rows = load(request.dataset_name, request.dataset_config, request.dataset_train_split)
    train, validation = to_training_set(rows, request.prompt_style, request.validation_size)
    if len(train) < (needed := request.prompts_per_step or 1):
        problem = f"{request.dataset_name} has {len(train)} rows to train on"
        raise RequestError(f"{problem}, fewer than prompts_per_step {needed}")
    return train, validation


def _first_line(error: BaseException) -> str:
    """The first line of an exception, or of its cause if it only wraps one."""
    return str(error.__cause__ or error).strip().split("\n")[0]
