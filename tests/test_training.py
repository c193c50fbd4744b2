"""Real trainings with a tiny random model: what they write, how they resume, and that they learn from the rewards."""

import json
import os
import shutil

import pandas
import pytest
import torch
from conftest import GSM8K, equal, launch, logs, needs_gsm8k, read_rows, save_tiny_model, steps, weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import rl_grpo
from r1zero import tracking


def test_a_training_leaves_a_model_metrics_completions_and_its_recipe(arguments, model, tmp_path, capsys):
    run = tmp_path / "run"
    rl_grpo.main(arguments(eval_strategy="steps", eval_steps=2, validation_size=8, num_generations_eval=1))
    said = capsys.readouterr().out

    assert not equal(weights(model), weights(run))
    entries = logs(run)
    assert [entry["step"] for entry in entries if "reward" in entry] == [1, 2]
    for name in ("accuracy", "format", "reflection", "length"):
        assert f"rewards/{name}/mean" in entries[0]
    assert any("eval_rewards/accuracy/mean" in entry for entry in entries)

    table = pandas.concat(pandas.read_parquet(path) for path in sorted((run / "completions").iterdir()))
    assert {"step", "prompt", "completion", "accuracy", "extracted_answer", "gold_answer", "advantage"} <= {*table}
    for step in (1, 2):  # whole groups of the step's own completions, also where a validation followed
        prompts = table[table["step"] == step]["prompt"].astype(str)
        assert prompts.value_counts().tolist() == [4] * 4
        means = {name: table[table["step"] == step][name].mean() for name in ("accuracy", "length")}
        assert {name: entries[step - 1][f"rewards/{name}/mean"] for name in means} == pytest.approx(means)

    held_out = pandas.read_parquet(run / "validation" / "validation_00002.parquet")
    assert len(held_out) == 8 and held_out["prompt"].astype(str).nunique() == 8
    assert not {*held_out["prompt"].astype(str)} & {*table["prompt"].astype(str)}
    validation = next(entry for entry in entries if "eval_rewards/length/mean" in entry)
    assert held_out["length"].mean() == pytest.approx(validation["eval_rewards/length/mean"])

    assert "seed" not in (run / "recipe.yaml").read_text()  # only what is not a default
    assert "prompts_per_step: 4" in (run / "recipe.yaml").read_text()
    environment = json.loads((run / "environment.jsonl").read_text())
    assert environment["packages"]["trl"] == "1.16.0" and environment["python"]
    assert "trl" in (run / "README.md").read_text()  # TRL's model card

    for word in (
        "step",
        "reward",
        "accuracy",
        "tokens",
        "truncated",
        "tokens/s",
        "1/2",
        "2/2",
        "validation after step 2",
    ):
        assert word in said
    assert f"model        {run}" in said and f"--config {run}/recipe.yaml" in said
    assert "'loss'" not in said  # not TRL's dictionary

    # The model that was written can be used as it is, and can stop.
    AutoModelForCausalLM.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run)
    ends = GenerationConfig.from_pretrained(run).eos_token_id
    assert {*tokenizer.convert_ids_to_tokens(ends)} == {"<|endoftext|>", "<|im_end|>"}
    assert tokenizer.pad_token_id not in ends


def test_resumed_equals_uninterrupted_and_a_finished_run_is_left_alone(arguments, tmp_path, capsys):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    rl_grpo.main(arguments(output_dir=straight, max_steps=4))
    rl_grpo.main(arguments(output_dir=resumed, max_steps=2))
    capsys.readouterr()
    rl_grpo.main(arguments(output_dir=resumed, max_steps=4))
    assert "resumed from checkpoint-2" in capsys.readouterr().out
    assert equal(weights(straight), weights(resumed))
    assert steps(straight) == steps(resumed)

    before = {path: path.stat().st_mtime_ns for path in resumed.rglob("*") if path.is_file()}
    rl_grpo.main(arguments(output_dir=resumed, max_steps=4))
    said = capsys.readouterr().out
    assert "is finished (4 steps)" in said and "--max_steps 8" in said and "--overwrite_output_dir" in said
    assert before == {path: path.stat().st_mtime_ns for path in resumed.rglob("*") if path.is_file()}

    # Another recipe does not get in, unless it is said; then what was there is kept.
    with pytest.raises(SystemExit) as end:
        rl_grpo.main(arguments(output_dir=resumed, max_steps=4, learning_rate="1e-4", seed=1))
    assert end.value.code == 2
    assert "learning_rate: 0.001 there, 0.0001 here" in capsys.readouterr().err
    rl_grpo.main([*arguments(output_dir=resumed, max_steps=1, seed=1), "--overwrite_output_dir"])
    assert equal(weights(tmp_path / "resumed.old-1"), weights(straight))
    assert not equal(weights(resumed), weights(straight))


def test_the_seed_decides(arguments, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        rl_grpo.main(arguments(output_dir=tmp_path / name, max_steps=1, seed=seed))
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def always_writes(token: str, model, folder):
    """A copy of the model that writes nothing but this token, with a base model's generation config."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = AutoConfig.from_pretrained(model, tie_word_embeddings=False)
    network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in network.model.layers:  # every hidden state is the token's embedding, and those are all ones
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        network.model.embed_tokens.weight.fill_(1.0)
        network.lm_head.weight.zero_()
        network.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = 10.0
    network.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("token", "style", "length"),
    [
        ("<|im_end|>", "question", 1),
        ("<|endoftext|>", "question", 1),
        ("<|endoftext|>", "r1_zero", 1),
        ("<|fim_pad|>", "question", 8),
    ],
)
def test_both_end_tokens_stop_a_base_model(arguments, model, tmp_path, token, style, length):
    rl_grpo.main(
        arguments(model_name_or_path=always_writes(token, model, tmp_path / "model"), prompt_style=style, max_steps=1)
    )
    assert logs(tmp_path / "run")[0]["completions/max_length"] == length


def test_plain_prompts_lora_and_trls_rewards(arguments, tmp_path):
    run = tmp_path / "run"
    rl_grpo.main(
        arguments(
            prompt_style="r1_zero",
            reward_funcs=["accuracy", "length_if_correct", "get_soft_overlong_punishment"],
            reward_weights=[1.0, 0.5, 1.0],
            use_peft="true",
            max_steps=1,
        )
    )
    assert (run / "adapter_model.safetensors").is_file() and not (run / "model.safetensors").exists()
    completions = pandas.read_parquet(next((run / "completions").iterdir()))
    assert completions["prompt"][0].startswith("A conversation between User and Assistant.")


def test_wandb_without_a_key_logs_offline_and_says_so_in_one_line(arguments, tmp_path):
    result = launch(
        "python", "rl_grpo.py", *arguments(report_to="wandb", max_steps=1), WANDB_MODE=None, HOME=str(tmp_path)
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    said = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("wandb")]
    assert not said and "tracker  wandb, offline (no API key; to upload it: wandb sync " in result.stdout
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_the_launcher_refuses_in_one_line_before_it_launches(arguments):
    result = launch("bash", "rl_grpo.sh", *arguments(num_generatoins=8), CONFIG="configs/toy.yaml")
    assert result.returncode == 2
    assert "did you mean --num_generations?" in result.stderr and "Traceback" not in result.stderr


@needs_gsm8k
def test_trains_on_the_real_gsm8k(arguments, tmp_path):
    """The whole real train split, R1-Zero's instructions by chat template, a small Qwen2.5-shaped model."""
    texts = [row["question"] + "\n" + row["answer"] for row in read_rows("train")[:500]]
    model = save_tiny_model(tmp_path / "model", texts, context=1024)
    run = tmp_path / "run"
    rl_grpo.main(
        arguments(
            model_name_or_path=model, dataset_name=GSM8K, prompt_style="chat", validation_size=128, max_steps=3,
            max_completion_length=32,
        )
    )  # fmt: skip
    completions = pandas.read_parquet(run / "completions" / "completions_00003.parquet")
    assert len(completions) == 16 and completions["gold_answer"].str.fullmatch(r"-?\d+").all()
    assert "<think>" in completions["prompt"][0][0]["content"]


def test_a_wandb_key_or_mode_of_the_users_is_respected(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    tracking.prepare_wandb(str(tmp_path))
    assert os.environ["WANDB_MODE"] == "online"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    tracking.prepare_wandb(str(tmp_path))
    assert os.environ["WANDB_MODE"] == "online" and capsys.readouterr().out == ""
