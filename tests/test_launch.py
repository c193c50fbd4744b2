"""Launching: what the launcher chooses, checks and does at the end; machines without a network; vLLM's version."""

import importlib.metadata
import re
import shutil
import subprocess

import hub
import pytest
from conftest import ROOT, environment, launch, training_arguments, write_jsonl
from datasets import Dataset
from transformers import AutoModelForCausalLM

from r1zero import launch as launcher
from r1zero import processes
from r1zero.arguments import make_parser
from r1zero.model import missing_weights
from r1zero.recipe import RequestError

REFERENCE = "configs/qwen2.5-1.5b-gsm8k.yaml"
LORA = "configs/qwen2.5-1.5b-gsm8k-lora.yaml"
SMALL_LORA = "configs/qwen2.5-0.5b-gsm8k-lora.yaml"

# The launcher's choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gigabytes", "recipe", "reason"),
    [
        ([], "configs/toy.yaml", "no GPU found"),
        ([85.0], REFERENCE, "GPU memory 85 GB"),  # A100 and H100 of 80 GB
        ([70.0], REFERENCE, "GPU memory 70 GB"),
        ([47.8], LORA, "GPU memory 48 GB"),
        ([25.3], LORA, "GPU memory 25 GB"),  # RTX 3090 and 4090
        ([20.0], LORA, "GPU memory 20 GB"),
        ([15.8], SMALL_LORA, "GPU memory 16 GB"),  # T4
        ([85.0, 25.3, 85.0], LORA, "GPU memory 25 GB"),
    ],
)
def test_the_recipe_follows_from_the_memory_of_the_smallest_gpu(gigabytes, recipe, reason):
    assert launcher.choose_recipe([int(size * 1e9) for size in gigabytes]) == (recipe, reason)
    assert (ROOT / recipe).is_file()


H100, T4 = (int(85e9), True), (int(15.8e9), False)
FP16 = ["--bf16", "false", "--fp16", "true"]


@pytest.mark.parametrize(
    ("gpus", "cores", "nodes", "given", "chosen", "arguments", "reason"),
    [
        ([], 2, 1, {}, ("configs/toy.yaml", "cpu", "2", "1", "1"), [], " (no GPU found)"),
        ([], 6, 1, {}, ("configs/toy.yaml", "cpu", "2", "1", "3"), [], " (no GPU found)"),
        ([], 96, 1, {}, ("configs/toy.yaml", "cpu", "4", "1", "24"), [], " (no GPU found)"),
        ([], 3, 1, {"CONFIG": ""}, ("configs/toy.yaml", "cpu", "1", "1", "3"), [], " (no GPU found)"),
        ([], 2, 2, {"OMP_NUM_THREADS": "5"}, ("configs/toy.yaml", "cpu", "2", "1", "5"), [], " (no GPU found)"),
        ([H100], 16, 1, {}, (REFERENCE, "single_gpu", "1", "0", None), [], " (GPU memory 85 GB)"),
        ([H100], 16, 2, {}, (REFERENCE, "zero2", "1", "0", None), [], " (GPU memory 85 GB)"),
        ([H100] * 4, 96, 1, {}, (REFERENCE, "zero2", "4", "0", None), [], " (GPU memory 85 GB)"),
        ([T4], 4, 1, {}, (SMALL_LORA, "single_gpu", "1", "0", None), FP16,
         " (GPU memory 16 GB, no bf16: --bf16 false --fp16 true)"),
        ([T4], 4, 1, {"CONFIG": LORA}, (LORA, "single_gpu", "1", "0", None), [], ""),
        ([H100] * 2, 4, 1, {"CONFIG": "./configs/toy.yaml", "NUM_PROCESSES": "1", "EVALUATE": "0"},
         ("./configs/toy.yaml", "single_gpu", "1", "0", None), [], ""),
        ([], 2, 1, {"CONFIG": "./configs/toy.yaml"}, ("./configs/toy.yaml", "cpu", "2", "1", "1"), [], ""),
    ],
)  # fmt: skip
def test_hardware_decides_what_the_user_leaves_open(gpus, cores, nodes, given, chosen, arguments, reason, monkeypatch):
    monkeypatch.setattr(launcher, "environ", variables := dict(given))
    assert launcher.choose(gpus, cores, nodes) == (arguments, reason)
    config, name, *numbers = chosen
    assert (variables["CONFIG"], variables["ACCELERATE_CONFIG"]) == (config, f"configs/accelerate/{name}.yaml")
    assert [variables.get(key) for key in ("NUM_PROCESSES", "EVALUATE", "OMP_NUM_THREADS")] == numbers


@pytest.mark.parametrize(
    ("name", "value"), [("MAIN_PROCESS_PORT", "http"), ("MAIN_PROCESS_PORT", "65536"), ("NUM_PROCESSES", "0")]
)
def test_a_variable_that_is_no_number_is_refused_in_one_line(name, value):
    result = launch("bash", "rl_grpo.sh", CONFIG="configs/toy.yaml", **{name: value})
    assert result.returncode == 2
    smallest = "1" if name == "NUM_PROCESSES" else "0"
    line = f"rl_grpo.sh: {name} '{value}' is not a number from {smallest} to 65535: correct or unset it\n"
    assert result.stderr == line


# Making the toy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--config", "configs/toy.yaml"], True),
        (["--config", REFERENCE, "--dataset_name", "outputs/toy-base/data", "--max_steps", "3"], True),
        (["--config", REFERENCE], False),
        (["--config", "configs/toy.yaml", "--max_stpes", "3"], False),  # refused at once, without minutes of waiting
        (["--config", "configs/toy.yaml", "--prompts_per_step", "7"], False),
    ],
)
def test_the_toy_is_made_only_for_a_request_that_is_right_otherwise(arguments, needed):
    assert launcher.needs_only_toy(arguments, 2) is needed


@pytest.mark.parametrize("node", [0, 1])
def test_the_first_node_makes_the_toy_and_the_others_wait_for_it(node, tmp_path, monkeypatch):
    toy, commands, naps = tmp_path / "toy", [], []

    def run(command, **options):
        commands.append(command[1])
        if command[1] == "-m":
            toy.mkdir()
        return subprocess.CompletedProcess(command, 0 if toy.exists() else 2, "", "there is no model folder toy")

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            toy.mkdir()

    monkeypatch.setattr(launcher, "TOY_BASE", str(toy))
    monkeypatch.setattr(launcher, "environ", {"ACCELERATE_CONFIG": "cpu.yaml", "NUM_PROCESSES": "1"})
    monkeypatch.setattr(launcher.subprocess, "run", run)
    monkeypatch.setattr(launcher.time, "sleep", sleep)
    launcher.check(["--config", "configs/toy.yaml", "--model_name_or_path", str(toy)], 1, node, {})
    check = "rl_grpo.py"
    assert (commands, naps) == (([check, "-m", check], []) if node == 0 else ([check] * 3, [5, 5]))


# The launcher's end -----------------------------------------------------------------------------------------


def test_the_launcher_closes_with_accuracy_before_and_after_and_figures(arguments, problems, tmp_path):
    data = tmp_path / "own data"
    for split in ("train", "test"):
        rows = [{"question": row["question"], "answer": row["answer"]} for row in problems]
        write_jsonl(data / f"{split}.jsonl", rows)
    command = arguments(dataset_name=data, max_steps=2, eval_strategy="no", validation_size=0)
    variables = {"CONFIG": "configs/toy.yaml", "NUM_PROCESSES": "2", "EVALUATE": None}
    result = launch("bash", "rl_grpo.sh", *command, **variables)
    assert result.returncode == 0, result.stderr[-2000:]
    comparison, closing = result.stdout.splitlines()[-2:]
    assert re.search(r"/tiny → .*/run: accuracy 0\.\d+ → 0\.\d+, difference [+-]0\.\d+ \[", comparison)
    assert closing == f"curves in {tmp_path / 'run' / 'figures'}"
    drawn = sorted(file.name for file in (tmp_path / "run" / "figures").iterdir())
    assert drawn == ["aha.png", "reward.png", "word_distribution.png"]
    assert "case.png is not drawn: no prompt came up twice" in result.stderr


def test_a_failing_evaluation_after_a_complete_training_is_reported(arguments, tmp_path):
    run = tmp_path / "run"  # the data has a test split that cannot be read
    command = arguments(max_steps=1, eval_strategy="no", validation_size=0)
    result = launch("bash", "rl_grpo.sh", *command, CONFIG="configs/toy.yaml", NUM_PROCESSES="1", EVALUATE="1")
    assert result.returncode == 1, result.stderr[-2000:]
    failed = f"python eval.py {run} --with_base --num_samples 8 --temperature 1"
    assert result.stderr.splitlines()[-1] == f"rl_grpo.sh: the training is complete, but this failed: {failed}"
    assert (run / "model.safetensors").is_file() and result.stdout.splitlines()[-1] == f"curves in {run / 'figures'}"


# Machines without a network --------------------------------------------------------------------------------


def test_prefetched_then_offline_then_what_is_missing_is_named(model, problems, tmp_path):
    """The reference recipe's own names, from a hub on this machine, which is then gone."""
    data = tmp_path / "data"
    card = "---\nconfigs:\n- config_name: main\n  data_files:\n"
    for split, rows in (("train", problems * 2), ("test", problems[:8])):
        (data / "main").mkdir(parents=True, exist_ok=True)
        table = Dataset.from_list([{"question": row["question"], "answer": row["answer"]} for row in rows])
        table.to_parquet(data / "main" / f"{split}-00000-of-00001.parquet")
        card += f"  - split: {split}\n    path: main/{split}-*\n"
    (data / "README.md").write_text(card + "---\n")

    variables = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    with hub.serve({"models/Qwen/Qwen2.5-1.5B": model, "datasets/openai/gsm8k": data}) as (address, requests):
        variables["HF_ENDPOINT"] = address
        result = launch("bash", "rl_grpo.sh", "--seed", "1", "--prefetch", "--run_name", "a b", **variables)
        assert result.returncode == 0, result.stderr[-2000:]
        assert result.stdout.rstrip().endswith(
            "sbatch -A ACCOUNT run_rl_grpo.cardinal.slurm --seed 1 --run_name 'a b'"
        ), result.stdout
        assert any("model.safetensors" in request for request in requests)

    variables["HF_HUB_OFFLINE"] = "1"  # and the hub at HF_ENDPOINT is gone: what still asked it would fail
    training = training_arguments(output_dir=tmp_path / "run", eval_strategy="no", validation_size=8, max_steps=1)
    result = launch("python", "rl_grpo.py", "--config", REFERENCE, *training, WANDB_MODE="offline", **variables)
    assert result.returncode == 0, result.stderr[-2000:]

    named = ["Qwen/Qwen2.5-1.5B", "--limit", "4", "--max_completion_length", "4"]
    result = subprocess.run(
        ["python", ROOT / "eval.py", *named], cwd=tmp_path, env=environment(**variables), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "outputs" / "evaluation" / "Qwen--Qwen2.5-1.5B" / "evaluation.jsonl").is_file()

    blobs = tmp_path / "cache" / "hub" / "models--Qwen--Qwen2.5-1.5B" / "snapshots" / hub.COMMIT
    (blobs / "model.safetensors").unlink()
    check = ["python", "rl_grpo.py", "--config", REFERENCE, *training, "--overwrite_output_dir"]
    result = launch(*check, **variables)
    assert result.returncode == 2
    assert "model Qwen/Qwen2.5-1.5B is incomplete in the cache: `bash rl_grpo.sh --prefetch`" in result.stderr
    result = launch(*check, "--model_name_or_path", model, **{**variables, "HF_HOME": str(tmp_path / "empty")})
    assert result.returncode == 2
    assert "dataset openai/gsm8k" in result.stderr and "`bash rl_grpo.sh --prefetch`" in result.stderr


def test_a_missing_shard_is_named(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sharded")
    sharded = AutoModelForCausalLM.from_pretrained(model)
    (folder / "model.safetensors").unlink()
    sharded.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and missing_weights(folder) is None
    (folder / shards[1]).unlink()
    assert missing_weights(folder) == shards[1]


def test_no_shell_file_expands_an_array_that_may_be_empty():
    """Under `set -u` that is an error in bash 3.2, which macOS has."""
    for file in (*ROOT.glob("*.sh"), *ROOT.glob("*.slurm"), *ROOT.glob("*/*.sh"), ROOT / ".ci" / "run"):
        text = file.read_text()
        for name in set(re.findall(r"\$\{(\w+)\[@\]", text)):
            first = re.search(rf"^\s*{name}=\((.*)", text, re.MULTILINE)
            assert first and re.match(r"[\w./]", first[1]), f"{file.name}: {name} may be empty"


# vLLM ------------------------------------------------------------------------------------------------------


def test_vllm_must_have_the_version_that_fits(arguments, monkeypatch):
    request = make_parser().read(arguments(use_vllm="true"))
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.31.0" if name == "vllm" else installed(name))
    with pytest.raises(RequestError, match=r"vLLM 0.31.0 does not fit .* pip install vllm==0.30.0"):
        processes.check_vllm(request)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.30.0" if name == "vllm" else installed(name))
    with pytest.raises(RequestError, match="vLLM needs a GPU"):
        processes.check_vllm(request)
    request.preflight = True  # on a login node
    processes.check_vllm(request)
