"""Topologies, and the same optimisation on any number of processes."""

import os

import pytest
import torch
from conftest import ROOT, launch, steps, training_arguments, weights
from transformers import AutoModelForCausalLM

import preflight
from recipe import RequestError

TOPOLOGIES = ROOT / "configs" / "accelerate"

# What a checkpoint holds only if the topology's own engine wrote it.
ENGINE_FILES = {
    "zero2": "global_step1/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero3": "global_step1/zero_pp_rank_1_mp_rank_00_model_states.pt",
    "fsdp2": "pytorch_model_fsdp.bin",
}


def pinned_arguments(model, data, run) -> list[str]:
    """An epoch of three steps with plain gradient descent and linear decay; 3 × 4 completions in micro-batches of 2.

    On two processes the second group lies on both.
    """
    return training_arguments(
        model_name_or_path=model, dataset_name=data, output_dir=run, validation_size=54,
        reward_funcs=["accuracy", "pinned.variety"], reward_weights=[10, 1],
        prompts_per_step=3, per_device_train_batch_size=2, max_completion_length=10, max_steps=None,
        num_train_epochs=1, optim="sgd", learning_rate=1, lr_scheduler_type="linear", save_steps=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_process(model, data, tmp_path_factory):
    """The run that all others are compared with."""
    run = tmp_path_factory.mktemp("one") / "run"
    result = launch("python", "rl_grpo.py", *pinned_arguments(model, data, run), PYTHONPATH=str(ROOT / "tests"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert [entry["step"] for entry in steps(run)] == [1, 2, 3]
    return run


@pytest.mark.parametrize("topology", ["cpu", "ddp", "zero2", "zero3", "fsdp2"])
def test_two_processes_take_the_same_steps_as_one(topology, one_process, model, data, tmp_path):
    """Same rewards, learning rates and updates, and a final model that loads as it is.

    The updates' tolerance: float32 sums over the same completions in another order, relative to the update's own
    norm. A wrong normaliser (by processes, by accumulation steps, by local token counts) is off by 0.1 or more.
    """
    run = tmp_path / "a run with spaces"
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("run_name: from the recipe\n")
    command = pinned_arguments(model, data, run)
    file = TOPOLOGIES / f"{topology}.yaml"
    if topology == "fsdp2":
        multi = ["--num_processes", "2", "--main_process_port", "0", "tests/fsdp_on_cpu.py", "--config", recipe]
        result = launch("accelerate", "launch", "--config_file", file, *multi, *command, PYTHONPATH="tests:.")
    else:
        result = launch(
            "bash", "rl_grpo.sh", *command, CONFIG=str(recipe), ACCELERATE_CONFIG=str(file), NUM_PROCESSES="2",
            PYTHONPATH=str(ROOT / "tests"),
        )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "12 completions a step = 2 × 2 processes × 3 accumulation steps" in result.stdout
    assert result.stdout.count("finished 3 steps") == 1  # one rank speaks
    assert "run_name: from the recipe" in (run / "recipe.yaml").read_text()
    if topology in ENGINE_FILES:
        assert (run / "checkpoint-1" / ENGINE_FILES[topology]).is_file(), sorted(os.listdir(run / "checkpoint-1"))

    for one, two in zip(steps(one_process), steps(run), strict=True):
        for key in ("reward", "reward_std", "learning_rate", "completions/mean_length", "frac_reward_zero_std"):
            assert two[key] == pytest.approx(one[key], rel=1e-6), key
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)

    before = weights(model)
    for step in (1, 3):
        one, two = (weights(folder / f"checkpoint-{step}") for folder in (one_process, run))
        update = torch.cat([(one[name] - before[name]).flatten() for name in before])
        difference = torch.cat([(one[name] - two[name]).flatten() for name in before])
        assert update.norm() > 0.1
        assert difference.norm() / update.norm() < 1e-4
    loaded = AutoModelForCausalLM.from_pretrained(run)
    assert torch.equal(loaded.get_input_embeddings().weight, weights(run)["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("topology", "processes", "complaint"),
    [
        ("configs/accelerate/fsdp2.yaml", 2, "FSDP needs GPUs"),
        ("configs/accelerate/single_gpu.yaml", 2, "is of one process, not 2"),
        (
            "configs/accelerate/zero4.yaml",
            2,
            "there is no topology configs/accelerate/zero4.yaml; there are configs/acc",
        ),
        ("configs/toy.yaml", 2, "cannot be read"),
        ("configs/accelerate/zero3.yaml", 2, None),
        ("configs/accelerate/single_gpu.yaml", 1, None),
    ],
)
def test_a_topology_that_would_run_as_something_else_is_refused(topology, processes, complaint):
    if complaint is None:
        return preflight.check_topology(topology, preflight.Plan(world_size=processes))
    with pytest.raises(RequestError, match=complaint):
        preflight.check_topology(topology, preflight.Plan(world_size=processes))


def test_fsdp_on_cpus_is_refused_under_accelerate_launch_too(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RequestError, match="FSDP needs GPUs"):
        preflight.check_topology(None, preflight.Plan(world_size=2))


@pytest.mark.parametrize("file", sorted(TOPOLOGIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_topologies_leave_the_number_of_processes_to_the_launcher(file):
    text = file.read_text()
    assert "num_processes" not in text
    assert ("mixed_precision: bf16" in text) == (file.stem != "cpu")
