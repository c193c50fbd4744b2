"""Fixtures: a tiny Qwen2 with random weights, and GSM8K-shaped data, both made here in a second."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

# Before anything imports them: no network, no accounts, and the same number of threads everywhere.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="disabled", OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu"
)
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

import toy  # noqa: E402

GSM8K = Path(os.environ.get("GSM8K", ROOT.parent / "shared" / "gsm8k"))
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"no GSM8K files in {GSM8K} (set GSM8K to their folder)")


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(split: str) -> list[dict]:
    return [json.loads(line) for line in (GSM8K / f"{split}.jsonl").read_text().splitlines()]


def save_tiny_model(folder: Path, texts: list[str], context: int = 256) -> Path:
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


@pytest.fixture
def arguments(model, data, tmp_path):
    """The command line of a training that takes a second a step."""

    def make(**overrides) -> list[str]:
        values = {
            "model_name_or_path": model,
            "dataset_name": data,
            "prompt_style": "question",
            "output_dir": tmp_path / "run",
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

    return make


def launch(*command, **environment) -> subprocess.CompletedProcess:
    """Run a command in the repository's root, with environment variables set, or unset by None."""
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
    )
