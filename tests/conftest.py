"""Fixtures: a tiny Qwen2 with random weights, and GSM8K-shaped data, both made here in a second."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# Before anything imports them: no network, no accounts, the same number of threads everywhere, no evaluation after
# a launcher's training.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="disabled", OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu",
    EVALUATE="0",
)  # fmt: skip
ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds for what ends by itself: a hang fails a test, a slow machine does not
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

from r1zero import toy  # noqa: E402

GSM8K = Path(os.environ.get("GSM8K", ROOT.parent / "shared" / "gsm8k"))
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"no GSM8K files in {GSM8K} (set GSM8K to their folder)")


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(split: str) -> list[dict]:
    return [json.loads(line) for line in (GSM8K / f"{split}.jsonl").read_text().splitlines()]


def save_tiny_model(folder: Path, texts: list[str], context: int = 1024) -> Path:
    """A two-layer Qwen2 with random weights and a tokenizer trained on `texts`."""
    tokenizer = toy.make_tokenizer(texts)
    toy.make_model(tokenizer, seed=0, hidden_size=32, context=context).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def problems() -> list[dict]:
    return toy.make_problems(random.Random(0), 80, set())


@pytest.fixture(scope="session")
def data(tmp_path_factory, problems) -> Path:
    """A folder with train.jsonl (64 rows) and a test.jsonl that would stop any training that read it."""
    folder = tmp_path_factory.mktemp("data with a space")
    write_jsonl(folder / "train.jsonl", [{key: row[key] for key in ("question", "answer")} for row in problems[:64]])
    (folder / "test.jsonl").write_text("training must not read this file\n")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory, problems) -> Path:
    texts = [f"user\n{row['question']}\nassistant\n<think>1+1=2.</think>\n<answer>2</answer>" for row in problems]
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", texts)


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """A training takes SIGTERM and SIGUSR1 for itself; the tests' own process gets them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def training_arguments(**overrides) -> list[str]:
    """The command line of a training that takes less than a second a step; None leaves a key out."""
    values = {
        "prompt_style": "question",
        "prompts_per_step": 4,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "max_steps": 2,
        "lr_scheduler_type": "constant",
        "learning_rate": "1e-3",
        "bf16": "false",
        "activation_checkpointing": "false",
        "logging_steps": 1,
        "log_completions": "true",
        "report_to": "none",
        "save_steps": 2,
        **overrides,
    }
    command = []
    for key, value in values.items():
        if value is not None:
            command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return command


@pytest.fixture
def arguments(model, data, tmp_path):
    """`training_arguments` with the tiny model and data, into `tmp_path / "run"`."""
    places = {"model_name_or_path": model, "dataset_name": data, "output_dir": tmp_path / "run"}
    return lambda **overrides: training_arguments(**{**places, **overrides})


# Of a log entry, what depends on the clock and not on the training.
CLOCK = ("step_time", "runtime", "per_second")


def logs(run: Path) -> list[dict]:
    """The metrics by step, without those of the clock."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if not any(word in k for word in CLOCK)} for entry in history]


def steps(run: Path) -> list[dict]:
    """Of the metrics, those of training steps."""
    return [entry for entry in logs(run) if "reward" in entry]


def weights(run: Path) -> dict[str, torch.Tensor]:
    # Copied: what is loaded is the file itself, which a later training may write over.
    return {name: tensor.clone() for name, tensor in load_file(run / "model.safetensors").items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def environment(**variables) -> dict[str, str]:
    """This process's, with the tests' own python first, and variables set, or unset by None."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    merged = {**os.environ, "PATH": path, **variables}
    return {name: value for name, value in merged.items() if value is not None}


def launch(*command, **variables) -> subprocess.CompletedProcess:
    """Run a command in the repository's root, with environment variables set, or unset by None."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


# Those that take longest first, so that all workers end at about the same time.
LONGEST = [f"test_{name}.py" for name in "signals slurm checkpoints processes precision launch eval plots".split()]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
