"""Accelerate configs, and the same optimisation on any number of processes."""

import os

import pytest
import torch
from conftest import ROOT, launch, steps, training_arguments, weights
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from transformers import AutoModelForCausalLM

from r1zero import processes
from r1zero.plan import Plan
from r1zero.recipe import RequestError

CONFIGS = ROOT / "configs" / "accelerate"

# A checkpoint holds these only if the engine of the accelerate config wrote it.
ENGINE_FILES = {
    "zero2": "global_step1/*zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero3": "global_step1/*zero_pp_rank_1_mp_rank_00_model_states.pt",
    "fsdp2": "pytorch_model_fsdp.bin",
}


def pinned_arguments(model, data, run, bf16: bool) -> list[str]:
    """An epoch of three steps with plain gradient descent and linear decay; 3 × 4 completions in micro-batches of 2.

    On two processes the second group lies on both.
    """
    return training_arguments(
        model_name_or_path=model, dataset_name=data, output_dir=run, validation_size=54,
        reward_funcs=["accuracy", "pinned.variety"], reward_weights=[10, 1], bf16=str(bf16).lower(),
        prompts_per_step=3, per_device_train_batch_size=2, max_completion_length=10, max_steps=None,
        num_train_epochs=1, optim="sgd", learning_rate=1, lr_scheduler_type="linear", save_steps=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_process(model, data, tmp_path_factory):
    """The runs that all others are compared with, by whether they compute in bf16."""
    runs = {}
    for bf16 in (False, True):
        runs[bf16] = tmp_path_factory.mktemp("one") / "run"
        command = pinned_arguments(model, data, runs[bf16], bf16)
        result = launch("python", "rl_grpo.py", *command, PYTHONPATH=str(ROOT / "tests"))
        assert result.returncode == 0, result.stderr[-2000:]
        assert [entry["step"] for entry in steps(runs[bf16])] == [1, 2, 3]
    return runs


# The updates' tolerance, relative to their norm. In fp32 the same sums in another order. In bf16 each operation has a
# relative rounding error of up to 2^-9; some twenty in a row add up like a random walk to 2^-9 × √20 ≈ 1 %. DeepSpeed
# keeps the residual stream in bf16 as well, where autocast keeps it in fp32, which makes several times that. A wrong
# normaliser (by processes, accumulation steps or local tokens) is off by 10 % or more.
TOLERANCE = {(False, "ddp"): 1e-4, (False, "zero"): 1e-4, (True, "ddp"): 0.01, (True, "zero"): 0.05}


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("cpu", False), ("ddp", False), ("zero2", False), ("zero3", False), ("fsdp2", False),
        ("ddp", True), ("zero2", True), ("zero3", True),
    ],
)  # fmt: skip
def test_two_processes_take_the_same_steps_as_one(name, bf16, one_process, model, data, tmp_path):
    """Same rewards, learning rates and updates, and a final model that loads as it is."""
    run = tmp_path / "a run with spaces"
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("run_name: from the recipe\n")
    command = pinned_arguments(model, data, run, bf16)
    file = CONFIGS / f"{name}.yaml"
    if name == "fsdp2":
        multi = ["--num_processes", "2", "--main_process_port", "0", "tests/fsdp_on_cpu.py", "--config", recipe]
        result = launch("accelerate", "launch", "--config_file", file, *multi, *command, PYTHONPATH="tests:.")
    else:
        result = launch(
            "bash", "rl_grpo.sh", *command, CONFIG=str(recipe), ACCELERATE_CONFIG=str(file), NUM_PROCESSES="2",
            PYTHONPATH=str(ROOT / "tests"),
        )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "12 completions per step = 2 × 2 processes × 3 accumulation steps" in result.stdout
    assert result.stdout.count("finished 3 steps") == 1  # one rank speaks
    assert "run_name: from the recipe" in (run / "recipe.yaml").read_text()
    if name in ENGINE_FILES:
        assert [*(run / "checkpoint-1").glob(ENGINE_FILES[name])], sorted(os.listdir(run / "checkpoint-1"))

    tolerance = TOLERANCE[bf16, "zero" if name.startswith("zero") else "ddp"]
    for one, two in zip(steps(one_process[bf16]), steps(run), strict=True):
        for key in ("reward", "reward_std", "learning_rate", "completions/mean_length", "frac_reward_zero_std"):
            assert two[key] == pytest.approx(one[key], rel=1e-6), key
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=tolerance)

    before = weights(model)
    for step in (1, 3):
        one = weights(one_process[bf16] / f"checkpoint-{step}")
        if bf16 and name.startswith("zero"):  # model.safetensors is in bf16
            two = get_fp32_state_dict_from_zero_checkpoint(str(run / f"checkpoint-{step}"))
        else:
            two = weights(run / f"checkpoint-{step}")
        update = torch.cat([(one[name] - before[name]).flatten() for name in before])
        difference = torch.cat([(one[name] - two[name]).flatten() for name in before])
        assert update.norm() > 0.1
        assert difference.norm() / update.norm() < tolerance
    loaded = AutoModelForCausalLM.from_pretrained(run)
    saved = weights(run)["model.embed_tokens.weight"]
    assert torch.equal(loaded.get_input_embeddings().weight, saved.to(loaded.dtype))


@pytest.mark.parametrize(
    ("config", "count", "complaint"),
    [
        ("configs/accelerate/fsdp2.yaml", 2, "FSDP needs GPUs"),
        ("configs/accelerate/single_gpu.yaml", 2, "is for one process, not 2"),
        (
            "configs/accelerate/zero4.yaml",
            2,
            "there is no accelerate config configs/accelerate/zero4.yaml; there are configs/acc",
        ),
        ("configs/toy.yaml", 2, "cannot be read"),
        ("configs/accelerate/zero3.yaml", 2, None),
        ("configs/accelerate/single_gpu.yaml", 1, None),
    ],
)
def test_an_accelerate_config_that_would_run_as_another_one_is_refused(config, count, complaint):
    if complaint is None:
        return processes.check(config, Plan(num_processes=count))
    with pytest.raises(RequestError, match=complaint):
        processes.check(config, Plan(num_processes=count))


def test_fsdp_on_cpus_is_refused_under_accelerate_launch_too(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RequestError, match="FSDP needs GPUs"):
        processes.check(None, Plan(num_processes=2))
