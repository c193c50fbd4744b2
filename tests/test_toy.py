"""The toy: its problems are right, its sets are apart, and what it saves reloads as it was."""

import json
import random
import re
import subprocess
import sys
import time

from conftest import ROOT, environment, launch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rewards
from r1zero import answers, toy


def test_problems_have_gsm8ks_schema_and_right_golds():
    problems = toy.make_problems(random.Random(3), 500, set())
    assert {len(problem["steps"]) for problem in problems} == {1, 2}
    for problem in problems:
        lines = problem["answer"].split("\n")
        for left, operator, right, result in re.findall(r"<<(\d+)([+-])(\d+)=(\d+)>>", problem["answer"]):
            assert int(result) == int(left) + int(right) * (1 if operator == "+" else -1)
            assert 0 <= int(result) <= toy.LARGEST
        assert lines[-1] == f"#### {result}" and answers.read_reference(problem["answer"]) == int(result)


def test_traces_are_of_mixed_quality_so_that_grpo_has_something_to_select():
    rng = random.Random(4)
    problems = toy.make_problems(rng, 1000, set())
    traces = [toy.make_trace(rng, problem["steps"]) for problem in problems]
    solutions = [problem["answer"] for problem in problems]
    means = {
        reward.__name__: sum(reward(traces, solution=solutions)) / len(traces)
        for reward in (rewards.accuracy, rewards.format, rewards.reflection)
    }
    assert 0.3 < means["accuracy"] < 0.7 and 0.8 < means["format"] < 0.95 and 0.05 < means["reflection"] < 0.2


def test_the_base_is_made_once_whole_and_reloads_identically(tmp_path):
    folder = tmp_path / "the base"
    result = launch("python", "-m", "r1zero.toy", "--output_dir", folder, "--steps", 2)
    assert result.returncode == 0, result.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["the base"]  # nothing half made beside it

    questions = {
        split: [json.loads(line)["question"] for line in (folder / "data" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }
    assert {split: len(rows) for split, rows in questions.items()} == {"train": 2000, "test": 400}
    assert not {*questions["train"]} & {*questions["test"]}

    tokenizer, reloaded = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    reloaded.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in (
        *questions["test"][:50],
        "<think>12-5=7. Wait, let me check.</think>\n<answer>7</answer>",
        "Ünïcode ½",
    ):
        assert tokenizer(text)["input_ids"] == again(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.pad_token == "<|fim_pad|>"
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "qwen2"

    refused = launch("python", "-m", "r1zero.toy", "--output_dir", folder)
    assert refused.returncode == 2 and "exists: delete it" in refused.stderr


def test_killed_while_it_is_made_it_leaves_nothing_that_looks_like_a_toy(tmp_path):
    """It is made beside its place and then moved there; the next command makes it."""
    command = [sys.executable, "-m", "r1zero.toy", "--steps", "500", "--output_dir", tmp_path / "base"]
    making = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("base.making-*/data/train.jsonl")):
        assert making.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    making.kill()
    making.wait()
    assert not (tmp_path / "base").exists()
