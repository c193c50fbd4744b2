"""Evaluation: counts on hand-made completions, intervals, and the complete command on tiny models."""

import io
import json
import shutil
from decimal import Decimal

import pytest
import scipy.stats
from conftest import GSM8K, ROOT, launch, needs_gsm8k, read_rows, save_tiny_model, write_jsonl
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, set_seed

import eval as evaluation_script
from r1zero import evaluation, intervals
from r1zero.answers import read_last_number

# Statistics ------------------------------------------------------------------------------------------------


def test_intervals_computed_by_hand():
    z = 1.959964
    # Wilson's interval of 3 of 7: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    centre, half = 3 / 7 + z**2 / 14, z * (3 / 7 * 4 / 7 / 7 + z**2 / 196) ** 0.5
    expected = [(centre + sign * half) / (1 + z**2 / 7) for sign in (-1, 1)]
    assert intervals.wilson(3, 7) == pytest.approx(expected, abs=1e-6)
    # For 0 of n, the exact interval ends where (1-p)^n is 2.5 %.
    assert intervals.exact(0, 7) == pytest.approx((0, 1 - 0.025 ** (1 / 7)))
    assert intervals.exact(7, 7) == pytest.approx((0.025 ** (1 / 7), 1))
    assert intervals.wilson(0, 0) == intervals.exact(0, 0) == (0, 1)
    # The standard deviation of 0, 0 and 3 is √3, so the standard error is 1.
    assert intervals.of_mean([0, 0, 3]) == pytest.approx((1 - z, 1 + z))
    assert intervals.of_mean([2]) == (2, 2)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 1), (5, 14), (14, 5), (9, 9), (0, 30), (61, 250)])
def test_mcnemar_is_the_exact_binomial_test_of_the_items_that_differ(only_first, only_second):
    items = 1319
    test = intervals.mcnemar(only_first, only_second, items)
    assert test["difference"] == (only_second - only_first) / items
    assert test["low"] <= test["difference"] <= test["high"]
    differing = only_first + only_second
    if not differing:
        assert (test["p"], test["low"], test["high"]) == (1.0, 0.0, 0.0)
        return
    exact = scipy.stats.binomtest(only_second, differing)
    assert test["p"] == pytest.approx(exact.pvalue, abs=1e-6)
    share = exact.proportion_ci(0.95, method="exact")
    expected = [(2 * bound - 1) * differing / items for bound in (share.low, share.high)]
    assert [test["low"], test["high"]] == pytest.approx(expected, abs=1e-6)
    assert (test["p"] < 0.05) == (test["low"] > 0 or test["high"] < 0)  # test and interval agree


def test_the_interval_of_groups_is_wilsons_of_so_many_independent_trials():
    right = [1, 0, 1, 1, 0, 1, 1]
    assert intervals.of_share_in_groups(right, [1] * 7) == pytest.approx(intervals.wilson(5, 7))
    # Completions that are all alike within a prompt are worth one each.
    assert intervals.of_share_in_groups([8 * one for one in right], [8] * 7) == pytest.approx(intervals.wilson(5, 7))
    assert intervals.of_share_in_groups([8, 8, 0], [8, 8, 0]) == intervals.wilson(2, 2)
    assert intervals.of_share_in_groups([], []) == (0.0, 1.0)


# Counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("so it is 7", 7), ("<answer>42</answer> There are 3 apples", 3), ("$1,234.50.", Decimal("1234.5")),
        ("8 - 5", 5), ("it is -5", -5), ("8-5", 5), ("\u22125", -5), ("none", None), ("", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_the_lenient_reader_takes_the_last_number_anywhere(completion, number):
    assert read_last_number(completion) == number


RIGHT, OTHER = "<think>2+2=4.</think>\n<answer>4</answer>", "<think>2+2=5.</think>\n<answer>5</answer>"


def make_rows(*items: list[tuple[str, bool]]) -> list[dict]:
    """Rows of items whose reference answer is 4, from (completion, truncated) by sample."""
    return [
        {"item": item, "sample": sample, "gold": "4", "tokens": 10, "truncated": truncated}
        | evaluation.score(completion, Decimal(4))
        for item, samples in enumerate(items)
        for sample, (completion, truncated) in enumerate(samples)
    ]


def test_hand_made_completions_are_counted_exactly():
    rows = make_rows([(RIGHT, False)], [(OTHER, False)], [("I think it is 4", False)], [("<think>hmm", True)])
    result = evaluation.summarise(rows, 1)
    counts = {name: result[name]["count"] for name in ("accuracy", "lenient", "formatted", "truncated")}
    assert counts == {"accuracy": 1, "lenient": 2, "formatted": 2, "truncated": 1}
    assert result["correct"] == [1, 0, 0, 0] and result["items"] == 4 and result["mean_tokens"] == 10
    assert (result["accuracy"]["low"], result["accuracy"]["high"]) == intervals.wilson(1, 4)


def test_samples_give_pass_at_1_pass_at_k_and_the_majority():
    right, other, none = (RIGHT, False), (OTHER, False), ("", False)
    rows = make_rows([right, right, other], [other, other, right], [none, none, right], [other, none, none])
    result = evaluation.summarise(rows, 3)
    assert result["accuracy"]["value"] == 4 / 12
    assert result["correct"] == [2, 1, 1, 0]
    assert result["pass_at_k"]["count"] == 3
    assert result["majority"]["count"] == 2  # completions without an answer do not vote
    assert (result["accuracy"]["low"], result["accuracy"]["high"]) == intervals.of_mean([2 / 3, 1 / 3, 1 / 3, 0])


def test_two_models_are_compared_item_by_item():
    first = evaluation.summarise(make_rows([(OTHER, False)], [(RIGHT, False)], [(OTHER, False)]), 1)
    second = evaluation.summarise(make_rows([(RIGHT, False)], [(RIGHT, False)], [(RIGHT, False)]), 1)
    for name, result in (("a", first), ("b", second)):
        result |= {"model": name, "settings": {"num_samples": 1}}
    line = evaluation.compare(first, second)
    assert line.startswith("a → b: accuracy 0.333 → 1.000, difference +0.667")
    assert line.endswith("p = 0.5: 2 items correct only in the second, 0 only in the first)")


# The command -----------------------------------------------------------------------------------------------


@pytest.fixture
def command(model, problems, tmp_path):
    """A private copy of the tiny model, and what evaluates it on 40 items."""
    copy = shutil.copytree(model, tmp_path / "model")
    rows = [{"question": row["question"], "answer": row["answer"]} for row in problems[:40]]
    write_jsonl(tmp_path / "data" / "test.jsonl", rows)
    settings = "--prompt_style question --max_completion_length 8 --batch_size 12".split()
    return [str(copy), "--dataset_name", str(tmp_path / "data"), *settings]


def test_the_same_evaluation_always_gives_the_same_files(command, tmp_path, monkeypatch, capsys):
    sampled = [*command, "--num_samples", "3", "--temperature", "1"]
    evaluation_script.main(sampled)
    said = capsys.readouterr()
    assert "pass@1" in said.out and "pass@3" in said.out and " 0/120" in said.err and "120/120" in said.err
    files = [tmp_path / "model" / f"evaluation.{ending}" for ending in ("json", "jsonl")]
    first = [file.read_bytes() for file in files]
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert [(row["item"], row["sample"]) for row in rows] == [
        (item, sample) for item in range(40) for sample in range(3)
    ]
    assert len({row["completion"] for row in rows}) > 20

    evaluation_script.main(sampled)  # finished: nothing is generated
    assert "/120" not in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == first

    # Interrupted in the sixth batch of four items, and in the middle of a line: five batches are kept, and the files
    # come out the same.
    for file in files:
        file.unlink()
    seeds = []

    def interrupt(seed: int) -> None:
        if len(seeds) == 5:
            raise KeyboardInterrupt
        seeds.append(seed)
        set_seed(seed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "set_seed", interrupt)
        evaluation_script.main(sampled)
    (part,) = (tmp_path / "model").glob("*.part-*")
    assert not any(file.exists() for file in files)
    with open(part, "a") as file:
        file.write("\n" + json.dumps(rows[0])[:30])
    capsys.readouterr()
    evaluation_script.main(sampled)
    said = capsys.readouterr().err
    assert " 60/120" in said and " 0/120" not in said
    assert [file.read_bytes() for file in files] == first
    assert not list((tmp_path / "model").glob("*.part-*"))

    # On two processes.
    for file in files:
        file.unlink()
    processes = ["--config_file", ROOT / "configs" / "accelerate" / "cpu.yaml", "--num_processes", "2"]
    result = launch("accelerate", "launch", *processes, "--main_process_port", "0", "eval.py", *sampled)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("pass@1") == 1  # one process prints
    assert [file.read_bytes() for file in files] == first

    evaluation_script.main([*sampled, "--seed", "1"])  # another evaluation
    assert [file.read_bytes() for file in files] != first


def test_before_and_after_and_a_runs_own_settings(command, tmp_path, capsys):
    other = shutil.copytree(tmp_path / "model", tmp_path / "run")
    (other / "recipe.yaml").write_text(
        f"dataset_name: {tmp_path}/data\nprompt_style: question\nmax_completion_length: 5\n"
    )
    evaluation_script.main([str(tmp_path / "model"), str(other), "--limit", "10"])
    said = capsys.readouterr().out
    assert "10 items, prompt style question, greedy" in said
    assert "difference +0.000 [+0.000, +0.000] (exact McNemar test p = 1: 0 items" in said
    rows = [json.loads(line) for line in (other / "evaluation.jsonl").read_text().splitlines()]
    assert max(row["tokens"] for row in rows) == 5 and len(rows) == 10


def test_with_base_evaluates_what_a_run_was_trained_from(command, tmp_path, capsys):
    run = shutil.copytree(tmp_path / "model", tmp_path / "run")
    (run / "recipe.yaml").write_text(f"model_name_or_path: {tmp_path}/model\n")
    evaluation_script.main([str(run), *command[1:], "--with_base"])
    assert f"{tmp_path}/model → {run}: accuracy" in capsys.readouterr().out


def test_an_adapter_is_evaluated_like_a_model(command, tmp_path, capsys):
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    evaluation_script.main([str(tmp_path / "model"), str(tmp_path / "adapter"), *command[1:]])
    # A fresh adapter changes nothing.
    first, second = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("model", "adapter"))
    assert first["accuracy"] == second["accuracy"] and first["mean_tokens"] == second["mean_tokens"]
    # With another base under the same name it is another model.
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    other.model.norm.weight.data *= 2
    other.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    evaluation_script.main([str(tmp_path / "adapter"), *command[1:]])
    assert "40/40" in capsys.readouterr().err


def test_ask_prints_an_answer(command, capsys):
    short = ["--prompt_style", "question", "--max_completion_length", "30", "--temperature", "1"]
    evaluation_script.main([command[0], *short, "--ask", "How many?"])
    assert len(capsys.readouterr().out.strip()) > 0
    answer = "<think>Wait, but 2.</think>"
    plain, coloured = io.StringIO(), io.StringIO()
    evaluation_script.print_answer(answer, Console(file=plain))
    evaluation_script.print_answer(answer, Console(file=coloured, force_terminal=True, color_system="standard"))
    assert plain.getvalue() == answer + "\n"
    expected = "\033[36m<think>\033[0m\033[1;33mWait, but\033[0m 2.\033[36m</think>\033[0m\n"
    assert coloured.getvalue() == expected


def test_bad_input_is_refused_in_one_line(command, model, tmp_path, capsys):
    def refuse(arguments) -> str:
        with pytest.raises(SystemExit) as end:
            evaluation_script.main(arguments)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("eval.py: "), error
        return error

    assert "give a --temperature" in refuse([*command, "--num_samples", "2"])
    assert "--limit 0 is too small" in refuse([*command, "--limit", "0"])
    assert "a model is named twice" in refuse([command[0], *command])
    assert "there is no model folder ./nowhere" in refuse(["./nowhere", *command[1:]])
    assert "holds no train.jsonl" in refuse([*command, "--split", "train"])
    assert "no recipe.yaml" in refuse([*command, "--with_base"])
    assert "vLLM is not installed" in refuse([*command, "--use_vllm"])
    (tmp_path / "data" / "test.jsonl").write_text("")
    assert "is empty" in refuse(command)
    bare = shutil.copytree(model, tmp_path / "bare")
    for file in (*bare.glob("tokenizer*"), bare / "chat_template.jinja"):
        file.unlink()
    assert "bare holds no tokenizer" in refuse([str(bare), *command[1:]])


@needs_gsm8k
def test_all_of_the_real_test_split_in_one_command(tmp_path, capsys):
    texts = [row["question"] + "\n" + row["answer"] for row in read_rows("train")[:500]]
    model = save_tiny_model(tmp_path / "model", texts, context=1024)
    arguments = ["--dataset_name", str(GSM8K), "--max_completion_length", "8", "--batch_size", "128"]
    evaluation_script.main([str(model), *arguments])
    said = capsys.readouterr()
    assert "1319 items" in said.out and "1319/1319" in said.err
    result = json.loads((model / "evaluation.json").read_text())
    assert result["items"] == 1319 and result["truncated"]["count"] > 1000
