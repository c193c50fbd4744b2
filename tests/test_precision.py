"""bf16 on CPUs: fp32 master weights and gradient sums, bf16 compute, generation and KV cache; one process and two."""

import pandas
import pytest
import torch
from conftest import ROOT, launch, logs, steps, training_arguments
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

import rl_grpo
from r1zero import rollouts
from r1zero.trainer import Trainer

CONFIGS = ROOT / "configs" / "accelerate"


@pytest.mark.parametrize("settings", [{}, {"use_peft": "true", "lora_target_modules": "all-linear"}])
def test_generation_reads_bf16_weights_and_keeps_a_bf16_cache(settings, arguments, tmp_path, monkeypatch):
    seen = []
    sample, read_prompts = rollouts.sample, rollouts.read_prompts

    def watch(model, *args, **kwargs):
        seen.append({weight.dtype for weight in model.parameters()})
        return sample(model, *args, **kwargs)

    def watch_cache(*args):
        cache = read_prompts(*args)
        if not torch.is_grad_enabled():
            seen.append({tensor.dtype for layer in cache.layers for tensor in (layer.keys, layer.values)})
        return cache

    monkeypatch.setattr(rollouts, "sample", watch)
    monkeypatch.setattr(rollouts, "read_prompts", watch_cache)
    rl_grpo.main(arguments(bf16="true", max_steps=2, save_steps=1, **settings))
    assert len(seen) == 4 and all(types == {torch.bfloat16} for types in seen)
    adapter = "adapter_model" if settings else "model"
    saved = load_file(tmp_path / "run" / "checkpoint-2" / f"{adapter}.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    optimizer = torch.load(tmp_path / "run" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    moments = [state["exp_avg_sq"] for state in optimizer["state"].values()]
    assert {tensor.dtype for tensor in moments} == {torch.float32}


def test_weights_come_back_as_they_were_and_tied_ones_stay_tied(model):
    network = Qwen2ForCausalLM.from_pretrained(model)
    before = {name: (weight, weight.clone()) for name, weight in network.named_parameters()}
    with rollouts.weights_as(network, torch.bfloat16):
        assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
        assert network.lm_head.weight is network.model.embed_tokens.weight
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    for name, (weight, value) in before.items():
        assert after[name] is weight and torch.equal(weight, value)


def test_a_static_cache_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        rl_grpo.main(arguments(bf16="true", cache_implementation="static", max_steps=1))
    assert end.value.code == 2
    assert "cache_implementation: leave it out" in capsys.readouterr().err


def run_on_two(name: str, arguments: list[str]):
    result = launch(
        "bash", "rl_grpo.sh", *arguments, CONFIG="configs/toy.yaml", ACCELERATE_CONFIG=str(CONFIGS / f"{name}.yaml"),
        NUM_PROCESSES="2", PYTHONPATH=str(ROOT / "tests"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return result


@pytest.mark.parametrize("name", ["cpu", "ddp", "zero2", "zero3"])
def test_bf16_trains_with_completions_of_different_lengths_and_resumes(name, model, data, tmp_path):
    def arguments(max_steps: int) -> list[str]:
        return training_arguments(
            model_name_or_path=model, dataset_name=data, output_dir=tmp_path / "run", bf16="true", max_steps=max_steps,
            save_steps=3, reward_funcs=["accuracy", "engine.variety"], per_device_train_batch_size=4,
            max_completion_length=24, eval_strategy="no", validation_size=0,
        )  # fmt: skip

    said = run_on_two(name, arguments(3)).stdout
    assert "computes in bf16" in said
    if name.startswith("zero"):
        assert said.count("DeepSpeed sums gradients in torch.float32") == 2
    said = run_on_two(name, arguments(4)).stdout
    assert "resumed from checkpoint-3" in said
    history = steps(tmp_path / "run")
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    assert any(entry["completions/min_length"] < entry["completions/max_length"] for entry in history)
    assert all(0 < entry["grad_norm"] < 1e3 for entry in history)


# Two processes ----------------------------------------------------------------------------------------------


def test_two_processes_count_validation_rows_once_and_follow_rank_0(model, data, tmp_path):
    """Seven rows in batches of four on two processes; then rank 1 sees an old state of the directory, then nothing."""
    run = tmp_path / "run"

    def train(max_steps: int, stale: str):
        arguments = training_arguments(
            model_name_or_path=model, dataset_name=data, output_dir=run, max_steps=max_steps, save_steps=2,
            reward_funcs=["length", "stale.nothing"], eval_strategy="steps", eval_steps=2, validation_size=7,
            per_device_eval_batch_size=4, num_generations_eval=1,
        )  # fmt: skip
        command = ["accelerate", "launch", "--config_file", CONFIGS / "cpu.yaml", "--num_processes", "2"]
        command += ["--main_process_port", "0", "rl_grpo.py", *arguments]
        return launch(*command, PYTHONPATH=str(ROOT / "tests"), STALE=stale)

    result = train(2, "no")
    assert result.returncode == 0, result.stderr[-2000:]
    table = pandas.read_parquet(run / "validation" / "validation_00002.parquet")
    assert len(table) == 7 and table["prompt"].astype(str).nunique() == 7
    (entry,) = [entry for entry in logs(run) if "eval_reward" in entry]
    columns = {"rewards/length/mean": "length", "reward": "length", "completions/mean_length": "tokens"}
    for metric, column in columns.items():
        assert entry[f"eval_{metric}"] == pytest.approx(table[column].mean()), metric

    result = train(4, "old")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "resumed from checkpoint-2" in result.stdout
    assert [entry["step"] for entry in steps(run)] == [1, 2, 3, 4]

    result = train(6, "none")
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("rl_grpo.py: ")]
    assert len(lines) == 1 and "rank 1" in lines[0] and "does not see" in lines[0] and "checkpoint-4" in lines[0]
    assert len(steps(run)) == 4


def test_entropy_is_the_mean_over_tokens_and_not_over_micro_batches(arguments, tmp_path, monkeypatch):
    """Micro-batches are sorted by length, so the two means differ."""
    seen = []
    score = Trainer._get_per_token_logps_and_entropies

    def watch(self, model, ids, mask, keep, *args, **kwargs):
        logps, entropies, loss = score(self, model, ids, mask, keep, *args, **kwargs)
        if entropies is not None:  # each token's is its completion's length, so that micro-batches differ
            lengths = mask[:, -keep:].sum(dim=1, keepdim=True)
            entropies = lengths.expand(-1, keep).float()
            seen.append((entropies * mask[:, -keep:], mask[:, -keep:]))
        return logps, entropies, loss

    monkeypatch.setattr(Trainer, "_get_per_token_logps_and_entropies", watch)
    rl_grpo.main(arguments(max_steps=1, per_device_train_batch_size=2, max_completion_length=32))
    (entry,) = steps(tmp_path / "run")
    by_token = sum(float(e.sum()) for e, _ in seen) / sum(int(m.sum()) for _, m in seen)
    by_micro_batch = sum(float(e.sum()) / int(m.sum()) for e, m in seen) / len(seen)
    assert entry["entropy"] == pytest.approx(by_token, rel=1e-5)
    assert abs(by_token - by_micro_batch) > 0.01 * by_token
