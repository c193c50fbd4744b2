"""Launch paths: signals, machines without a network, vLLM's conditions."""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import hub
import psutil
import pytest
from conftest import PATIENCE, ROOT, environment, equal, launch, steps, training_arguments, weights, write_jsonl
from datasets import Dataset
from transformers import AutoModelForCausalLM

import checkpoints
import preflight
import rl_grpo
from recipe import RequestError

# Signals ---------------------------------------------------------------------------------------------------


def wait_for(condition, what: str):
    """Return the first true value of `condition()`."""
    until = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < until, f"waited {PATIENCE} s for {what}"
        time.sleep(0.05)
    return value


def test_ranks_signalled_at_different_moments_stop_at_one_step_and_the_run_goes_on_as_if_it_had_not(
    arguments, tmp_path
):
    """Under ZeRO-3, where each rank holds a part of every weight and of the optimizer; DDP's turn is in tests/slurm."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    variables = environment(
        CONFIG="configs/toy.yaml", NUM_PROCESSES="2", ACCELERATE_CONFIG="configs/accelerate/zero3.yaml",
        PYTHONPATH=str(ROOT / "tests"),
    )  # fmt: skip

    def command(run):
        options = {"reward_funcs": ["accuracy", "paced.letters"], "max_steps": 16, "save_steps": 100}
        return ["bash", "rl_grpo.sh", *arguments(output_dir=run, eval_strategy="no", validation_size=0, **options)]

    log = tmp_path / "log"
    with open(log, "w") as file:
        launcher = subprocess.Popen(command(stopped), cwd=ROOT, env=variables, stdout=file, stderr=file)
    wait_for(lambda: " 2/16" in log.read_text() or launcher.poll() is not None, "step 2")
    ranks = {
        int(process.environ()["RANK"]): process
        for process in psutil.Process(launcher.pid).children(recursive=True)
        if "rl_grpo.py" in process.cmdline() and "RANK" in process.environ()
    }
    ranks[1].send_signal(signal.SIGTERM)
    time.sleep(0.1)
    ranks[0].send_signal(signal.SIGUSR1)
    assert launcher.wait(timeout=PATIENCE) == 0, log.read_text()[-2000:]

    checkpoint, _ = checkpoints.last_whole(stopped)
    step = checkpoints.sealed_step(checkpoint)
    assert 2 <= step < 16
    assert {path.name for path in stopped.glob("checkpoint-*")} == {f"checkpoint-{step}"}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(checkpoint))
    said = log.read_text()
    assert f"after step {step} of 16; checkpoint-{step} is whole, and the same command goes on" in said
    assert "Traceback" not in said
    assert not list(stopped.glob("*.safetensors"))  # nothing that looks like a finished run

    for run in (straight, stopped):
        result = subprocess.run(command(run), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr[-2000:]
    assert f"resumed from checkpoint-{step}" in result.stdout
    assert steps(straight) == steps(stopped)
    assert equal(weights(straight), weights(stopped))


@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGTERM, 0), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_to_the_launcher_reaches_the_training(number, ends_with, arguments, tmp_path):
    log = tmp_path / "log"
    variables = environment(
        CONFIG="configs/toy.yaml", NUM_PROCESSES="1", ACCELERATE_CONFIG="configs/accelerate/single_gpu.yaml",
        PYTHONPATH=str(ROOT / "tests"),
    )  # fmt: skip
    command = arguments(
        reward_funcs=["accuracy", "paced.letters"], max_steps=500, eval_strategy="no", validation_size=0
    )
    with open(log, "w") as file:
        launcher = subprocess.Popen(
            ["bash", "rl_grpo.sh", *command], cwd=ROOT, env=variables, stdout=file, stderr=file,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background
        )  # fmt: skip
    wait_for(lambda: " 1/500" in log.read_text() or launcher.poll() is not None, "step 1")
    launcher.send_signal(number)
    assert launcher.wait(timeout=PATIENCE) == ends_with, log.read_text()[-2000:]
    assert "stopped by SIGUSR1 after step" in log.read_text() and "Traceback" not in log.read_text()


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


def test_a_signal_does_not_kill_the_check_before_the_training(arguments):
    """As the launchers run it: a signal that comes too early is ignored, and sent again later."""
    request = arguments(max_steps=1, eval_strategy="no", validation_size=0)
    check = subprocess.Popen(
        [sys.executable, "rl_grpo.py", "--config", "configs/toy.yaml", *request, "--preflight"],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    )  # fmt: skip
    while check.poll() is None:  # at every moment, its last ones included
        check.send_signal(signal.SIGUSR1)
        time.sleep(0.0005)
    assert check.returncode == 0


def test_a_signal_in_the_last_step_lets_the_run_finish(arguments, tmp_path, capsys, monkeypatch):
    def signal_at_once(self):
        handlers(self)
        signal.raise_signal(signal.SIGTERM)

    handlers = rl_grpo.StopTogether.__init__
    monkeypatch.setattr(rl_grpo.StopTogether, "__init__", signal_at_once)
    rl_grpo.main(arguments(max_steps=1))
    assert "finished 1 steps" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_with_sparse_logging_a_stop_logs_what_it_has(arguments, tmp_path, monkeypatch):
    handlers = rl_grpo.StopTogether.on_step_end

    def signal_in_step_3(self, args, state, control, **kwargs):
        if state.global_step == 3:
            signal.raise_signal(signal.SIGUSR1)
        handlers(self, args, state, control, **kwargs)

    monkeypatch.setattr(rl_grpo.StopTogether, "on_step_end", signal_in_step_3)
    rl_grpo.main(arguments(max_steps=10, logging_steps=2, save_strategy="no"))
    assert [entry["step"] for entry in steps(tmp_path / "run")] == [2, 3]
    assert checkpoints.last_whole(tmp_path / "run")[0].name == "checkpoint-3"


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
