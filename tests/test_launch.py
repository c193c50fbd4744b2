"""Launch paths: the launcher's end, machines without a network, vLLM's conditions."""

import importlib.metadata
import re
import shutil
import subprocess

import hub
import pytest
from conftest import ROOT, environment, launch, training_arguments, write_jsonl
from datasets import Dataset
from transformers import AutoModelForCausalLM

import preflight
import rl_grpo
from recipe import RequestError

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
    assert "case.png is not drawn: no prompt came twice" in result.stderr


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
            "sbatch -A ACCOUNT run_rl_grpo.cardinal.slurm --seed 1 --run_name a\\ b"
        ), result.stdout
        assert any("model.safetensors" in request for request in requests)

    recipe = "configs/qwen2.5-1.5b-gsm8k.yaml"
    variables["HF_HUB_OFFLINE"] = "1"  # and the hub at HF_ENDPOINT is gone: what still asked it would fail
    training = training_arguments(output_dir=tmp_path / "run", eval_strategy="no", validation_size=8, max_steps=1)
    result = launch("python", "rl_grpo.py", "--config", recipe, *training, WANDB_MODE="offline", **variables)
    assert result.returncode == 0, result.stderr[-2000:]

    named = ["Qwen/Qwen2.5-1.5B", "--limit", "4", "--max_completion_length", "4"]
    result = subprocess.run(
        ["python", ROOT / "evaluate.py", *named],
        cwd=tmp_path,
        env=environment(**variables),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "outputs" / "evaluation" / "Qwen--Qwen2.5-1.5B" / "evaluation.jsonl").is_file()

    blobs = tmp_path / "cache" / "hub" / "models--Qwen--Qwen2.5-1.5B" / "snapshots" / hub.COMMIT
    (blobs / "model.safetensors").unlink()
    check = ["python", "rl_grpo.py", "--config", recipe, *training, "--overwrite_output_dir"]
    result = launch(*check, **variables)
    assert result.returncode == 2
    assert "model Qwen/Qwen2.5-1.5B is not whole in the cache: `bash rl_grpo.sh --prefetch`" in result.stderr
    result = launch(*check, "--model_name_or_path", model, **{**variables, "HF_HOME": str(tmp_path / "empty")})
    assert result.returncode == 2
    assert "dataset openai/gsm8k" in result.stderr and "`bash rl_grpo.sh --prefetch`" in result.stderr


def test_a_missing_shard_is_named(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "sharded")
    sharded = AutoModelForCausalLM.from_pretrained(model)
    (folder / "model.safetensors").unlink()
    sharded.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and preflight.missing_weights(folder) is None
    (folder / shards[1]).unlink()
    assert preflight.missing_weights(folder) == shards[1]


# vLLM ------------------------------------------------------------------------------------------------------


def test_vllm_is_wanted_in_the_one_version_that_fits(arguments, monkeypatch):
    request = rl_grpo.make_parser().read(arguments(use_vllm="true"))
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.31.0" if name == "vllm" else installed(name))
    with pytest.raises(RequestError, match=r"vLLM 0.31.0 does not fit .* pip install vllm==0.30.0"):
        preflight.check_vllm(request)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.30.0" if name == "vllm" else installed(name))
    with pytest.raises(RequestError, match="vLLM needs a GPU"):
        preflight.check_vllm(request)
    request.preflight = True  # on a login node
    preflight.check_vllm(request)


def test_a_vllm_server_is_waited_for_and_then_named():
    with hub.serve({}) as (address, _), pytest.raises(RequestError, match=f"{address} .*404.* `trl vllm-serve`"):
        preflight.wait_for_server(address, 0, "trl vllm-serve")
    with pytest.raises(RequestError, match="Connection refused"):
        preflight.wait_for_server(address, 0, "trl vllm-serve")
