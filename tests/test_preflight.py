"""What is wrong with a request is said in one line, with exit code 2, before weights are loaded."""

import itertools
import json
import os
import re
import resource
import shutil
import sys
import time
from argparse import Namespace

import pytest
import torch
from conftest import launch, save_tiny_model, write_jsonl
from transformers import AutoTokenizer

import rewards
import rl_grpo
from r1zero import batch as batches
from r1zero import checkpoints, data, evaluation, memory, preflight, processes
from r1zero.arguments import make_parser
from r1zero.plan import Plan
from r1zero.recipe import RequestError


def refuse(capsys, arguments: list[str]) -> str:
    """The one line with which `rl_grpo.py` refuses these arguments."""
    with pytest.raises(SystemExit) as end:
        rl_grpo.main(arguments)
    captured = capsys.readouterr()
    lines = captured.err.strip().split("\n")
    assert end.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("rl_grpo.py: "), captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"reward_funcs": "acuracy"}, "unknown reward 'acuracy': choose from accuracy, format"),
        ({"reward_funcs": ["format", "format"]}, "names a reward twice"),
        ({"reward_weights": [1, 2]}, "2 reward_weights for 4 reward_funcs"),
        ({"model_name_or_path": None}, "no model_name_or_path"),
        ({"dataset_name": None}, "no dataset_name"),
        ({"model_name_or_path": "./nowhere"}, "there is no model folder ./nowhere"),
        ({"model_name_or_path": "nobody/nothing"}, "model nobody/nothing is neither a local folder nor found"),
        ({"dataset_name": "./nowhere"}, "there is no folder ./nowhere"),
        ({"dataset_name": "nobody/nothing"}, "dataset nobody/nothing"),
        ({"dataset_train_split": "validation"}, "holds no validation.jsonl"),
        ({"num_generations": 1}, "at least 2"),
        ({"prompts_per_step": 0}, "at least 1"),
        ({"per_device_train_batch_size": 0}, "at least 1"),
        ({"per_device_train_batch_size": 6}, "nearest per_device_train_batch_size 4 or 8"),
        ({"gradient_accumulation_steps": 3}, "contradicts prompts_per_step"),
        ({"prompts_per_step": None, "per_device_train_batch_size": 6}, "nearest per_device_train_batch_size 4 or 8"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "needs rows to evaluate on"),
        ({"eval_strategy": "steps", "validation_size": 8, "per_device_eval_batch_size": 6}, "size 4 or 8"),
        ({"validation_size": 64}, "cannot be held out of 64 rows: choose from 0 to 63"),
        ({"validation_size": 62}, "has 2 rows to train on, fewer than prompts_per_step 4"),
        ({"resume_from_checkpoint": "nowhere"}, "is not a complete checkpoint"),
        ({"resume_from_checkpoint": "true"}, "holds no complete checkpoint to resume from"),
        ({"num_processes": 2}, "go with --preflight"),
        ({"accelerate_config": "configs/accelerate/ddp.yaml"}, "go with --preflight"),
        ({"enable_jit_checkpoint": "true"}, "enable_jit_checkpoint: leave it out"),
        ({"use_vllm": "true"}, "vLLM is not installed: pip install vllm==0.30.0"),
        ({"num_generatoins": 8}, "did you mean --num_generations?"),
        ({"epsilon_high": "high"}, "invalid float value"),
        ({"optim": "sdg"}, "invalid choice: 'sdg'"),
        ({"vllm_importance_sampling_clip_min": 5}, "must be less than"),  # a rule of TRL's own
    ],
)
def test_a_wrong_request_is_refused_in_one_line(arguments, capsys, overrides, complaint):
    assert complaint in refuse(capsys, arguments(**overrides))


def test_a_bad_gold_is_named_with_file_and_row(arguments, tmp_path, capsys):
    row = {"question": "q", "answer": "#### 1"}
    write_jsonl(tmp_path / "data" / "train.jsonl", [row, row, {**row, "answer": "many"}])
    line = refuse(capsys, arguments(dataset_name=tmp_path / "data"))
    assert f"{tmp_path}/data/train.jsonl, row 3: the reference answer cannot be read" in line
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"q": "q", "answer": "#### 1"}])
    assert "no column 'question'" in refuse(capsys, arguments(dataset_name=tmp_path / "data"))
    (tmp_path / "data" / "train.jsonl").write_text('{"question": \n')
    assert "train.jsonl cannot be read as json" in refuse(capsys, arguments(dataset_name=tmp_path / "data"))


def test_a_model_without_chat_template_or_weights_is_refused(arguments, model, tmp_path, capsys):
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert "has no chat template" in refuse(capsys, arguments(model_name_or_path=bare))
    rl_grpo.main([*arguments(model_name_or_path=bare, prompt_style="r1_zero"), "--preflight"])
    (bare / "model.safetensors").unlink()
    assert "holds no *.safetensors" in refuse(capsys, arguments(model_name_or_path=bare))


def test_a_missing_toy_is_named_with_the_command_that_makes_it(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refuse(capsys, arguments(model_name_or_path="outputs/toy-base"))
    assert line.endswith("there is no model folder outputs/toy-base: python -m r1zero.toy makes it")


def test_a_model_folder_is_not_trained_over(arguments, model, capsys):
    assert "holds a model that this script did not write" in refuse(capsys, arguments(output_dir=model))


def test_preflight_alone_says_the_plan_for_any_number_of_processes_and_trains_nothing(arguments, tmp_path, capsys):
    rl_grpo.main([*arguments(validation_size=8), "--preflight", "--num_processes", "2"])
    said = capsys.readouterr().out
    assert "4 prompts × 4 generations = 16 completions per step = 8 × 2 processes × 1 accumulation steps" in said
    assert "56 rows to train on, 8 held out" in said
    assert not (tmp_path / "run").exists()


def batch(**fields) -> Namespace:
    return Namespace(
        **{
            "prompts_per_step": None,
            "num_generations": 8,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "generation_batch_size": None,
            "steps_per_generation": None,
            "eval_strategy": "no",
            **fields,
        }
    )


def test_batch_arithmetic_is_the_same_optimisation_on_any_number_of_processes_or_names_values_that_are():
    refused = 0
    for prompts, generations, size, count in itertools.product((1, 3, 32), (2, 7, 18), range(1, 20), (1, 2, 3, 8)):
        request = batch(prompts_per_step=prompts, num_generations=generations, per_device_train_batch_size=size)
        try:
            accumulation = batches.check(request, count)
            assert accumulation * size * count == prompts * generations
        except RequestError as error:
            refused += 1
            for key, values in re.findall(r"nearest (\w+) ([\d or]+)", str(error)):
                for value in values.split(" or "):
                    fixed = Namespace(**{**vars(request), key: int(value)})
                    assert batches.check(fixed, count) >= 1
    assert refused > 100


def test_without_prompts_per_step_trls_rule_holds_and_the_fixes_satisfy_it():
    for generations, size, count, accumulation in itertools.product((4, 18), range(1, 40), (1, 2, 8), (1, 2, 3)):
        request = batch(
            num_generations=generations, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
        )
        try:
            assert batches.check(request, count) == accumulation
            assert size * count * accumulation % generations == 0
        except RequestError as error:
            values = re.search(r"nearest per_device_train_batch_size ([\d or]+)", str(error))[1]
            for value in values.split(" or "):
                request.per_device_train_batch_size = int(value)
                assert batches.check(request, count) == accumulation


# Rewards that do not teach what is wanted ----------------------------------------------------------------------


ODD_REWARDS = """
def right_is_wrong(completions, solution, **kwargs):
    from rewards import accuracy
    return [1 - value for value in accuracy(completions, solution)]
def raises(completions, **kwargs):
    return [1 / len(c[0]["content"]) for c in completions]
def one_for_all(completions, **kwargs):
    return [1.0]
def number(completions, **kwargs):
    return 1.0
def endless(completions, **kwargs):
    return [float("inf")] * len(completions)
def words(completions, **kwargs):
    return ["good"] * len(completions)
def nothing(completions, **kwargs):
    return [None] * len(completions)
async def later(completions, solution, **kwargs):
    from rewards import accuracy
    return accuracy(completions, solution)
"""


@pytest.fixture
def odd_rewards(tmp_path, monkeypatch):
    (tmp_path / "odd_rewards.py").write_text(ODD_REWARDS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("names", "weights", "pays"),
    [
        (["format"], None, "1 for a right answer, 1 for a wrong one and 0 for none"),
        (["accuracy", "odd_rewards.right_is_wrong"], None, "1 for a right answer, 1 for a wrong one and 1 for none"),
        (["accuracy", "format"], ["0", "1"], "1 for a right answer, 1 for a wrong one and 0 for none"),
        (["accuracy"], ["-1"], "-1 for a right answer"),
        (["odd_rewards.nothing"], None, "0 for a right answer, 0 for a wrong one and 0 for none"),
        (["accuracy_reward"], None, "for a right answer"),  # TRL's reads only LaTeX
        (["odd_rewards.later", "odd_rewards.nothing"], None, None),
        (["accuracy", "get_soft_overlong_punishment", "think_format_reward"], None, None),
    ],
)
def test_rewards_that_do_not_pay_a_right_answer_most_are_warned_of(
    odd_rewards, arguments, capsys, names, weights, pays
):
    rl_grpo.main([*arguments(reward_funcs=names, reward_weights=weights), "--preflight"])
    said = capsys.readouterr().out
    if pays:
        assert f"warning  reward values: the rewards {' '.join(names)} pay " in said and pays in said
        assert "so accuracy will not improve: add accuracy, or change reward_weights" in said
    else:
        assert "warning  reward values" not in said


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("raises", "reward odd_rewards.raises raises ZeroDivisionError"),
        ("one_for_all", "one_for_all returns [1.0] for 8 completions: a reward returns a list"),
        ("number", "number returns 1.0 for 8 completions"),
        ("endless", "endless returns [inf, inf"),
        ("words", "words returns ['good', 'good'"),
    ],
)
def test_a_reward_that_raises_or_returns_no_numbers_is_refused(odd_rewards, arguments, capsys, name, complaint):
    command = [*arguments(reward_funcs=["accuracy", f"odd_rewards.{name}"]), "--preflight"]
    assert complaint in refuse(capsys, command)


# Room and precision --------------------------------------------------------------------------------------------


def test_prompts_that_do_not_fit_the_context_are_counted(arguments, problems, tmp_path, capsys):
    small = save_tiny_model(tmp_path / "small", [row["question"] for row in problems], context=60)
    line = refuse(capsys, arguments(model_name_or_path=small, max_completion_length=16))
    assert re.search(
        r"\d+ of 64 prompts \(the longest has \d+ tokens\) and a completion of 16 do not fit .* context of 60", line
    )
    room = int(re.search(r"max_completion_length (\d+), or a shorter prompt_style", line)[1])
    rl_grpo.main([*arguments(model_name_or_path=small, max_completion_length=room), "--preflight"])
    assert f"+ {room} for the completion, of the model's 60" in capsys.readouterr().out
    refuse(capsys, arguments(model_name_or_path=small, max_completion_length=room + 1))
    line = refuse(capsys, arguments(model_name_or_path=small, prompt_style="r1_zero"))
    assert "64 of 64 prompts" in line and line.endswith("use a shorter prompt_style")


def test_prompt_lengths_are_the_tokens_that_training_sees(model, problems):
    tokenizer = AutoTokenizer.from_pretrained(model)
    for style in ("chat", "r1_zero", "question"):
        prompts = [data.to_prompt(row["question"], style) for row in problems]
        exact = [len(evaluation.tokenize(tokenizer, row["question"], style)) for row in problems]
        assert memory.prompt_tokens(tokenizer, prompts) == exact
        many = sorted(exact * 40, reverse=True)  # of many, only the longest are tokenized
        assert memory.long_prompts(tokenizer, prompts * 40) == (many[0], many[32])


def test_16_bit_weights_without_a_master_copy_are_refused(arguments, model, tmp_path, capsys):
    line = refuse(capsys, arguments(dtype="bfloat16", bf16="true", learning_rate="3e-6"))
    assert "dtype bfloat16 keeps no fp32 master copy of the weights: at learning_rate 3e-06 nearly every update" in line
    assert "dtype float16 keeps no" in refuse(capsys, arguments(dtype="float16"))
    half = shutil.copytree(model, tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert "dtype bfloat16" in refuse(capsys, arguments(model_name_or_path=half, dtype="auto"))
    # An adapter is kept in fp32 beside it, and DeepSpeed keeps a master copy itself.
    rl_grpo.main([*arguments(dtype="bfloat16", use_peft="true"), "--preflight"])
    zero = ["--accelerate_config", "configs/accelerate/zero2.yaml", "--num_processes", "2", "--preflight"]
    rl_grpo.main([*arguments(dtype="bfloat16", bf16="true", per_device_train_batch_size=4), *zero])
    # With continuous batching TRL makes fp32 weights such ones as well.
    batching = {"use_transformers_continuous_batching": "true", "bf16": "true"}
    line = refuse(capsys, arguments(**batching))
    assert "TRL converts the trained weights to 16 bits" in line and "zero2.yaml" in line
    rl_grpo.main([*arguments(**batching, per_device_train_batch_size=4), *zero])


@pytest.mark.parametrize("bf16", ["true", None])  # None is TRL's default, and means true
def test_bf16_on_a_cpu_is_warned_of(arguments, bf16):
    request = make_parser().read(arguments(bf16=bf16))
    plan = preflight.check(request, {}, rewards.REWARDS)
    assert [f.check for f in plan.findings if f.status == "warning"] == ["precision"]
    assert "computes in bf16" in dict(plan.table)["model"]


# The machine -----------------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_written_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "is a file" in refuse(capsys, arguments(output_dir=tmp_path / "file"))
    assert "/proc/run cannot be written (" in refuse(capsys, arguments(output_dir="/proc/run"))


def test_a_killed_compilation_is_found_before_deepspeed_waits_for_it(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    alone = {"preflight": "true", "num_processes": 2, "accelerate_config": "configs/accelerate/zero2.yaml"}
    rl_grpo.main(arguments(**alone))  # may be compiling now
    os.utime(lock, (0, time.time() - 3600))
    said = refuse(capsys, arguments(**alone))
    assert f"{lock} is 60 minutes old" in said and "delete that file" in said
    rl_grpo.main(arguments(**{**alone, "accelerate_config": "configs/accelerate/cpu.yaml"}))


def test_more_processes_than_gpus_and_idle_gpus_are_seen(arguments, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    plan = Plan(num_processes=4)
    with pytest.raises(RequestError, match="4 processes on a machine with 2 GPUs: NUM_PROCESSES=2"):
        processes.check("configs/accelerate/ddp.yaml", plan)
    processes.check("configs/accelerate/cpu.yaml", plan)
    assert plan.findings[0].message == "it uses the CPU and leaves 2 GPUs idle"


def test_apples_gpu_is_not_used(arguments, monkeypatch, capsys):
    """It has no double precision, which sampling needs."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    request = make_parser().read(arguments())
    plan = preflight.check(request, {}, rewards.REWARDS)
    assert plan.on_cpu and "Apple's GPU is not used" in plan.findings[2].message
    processes.settle(request, plan)
    assert request.use_cpu is True


def test_windows_is_refused_in_one_line():
    """`r1zero` says so before anything asks for SIGUSR1."""
    code = "import os, sys; sys.path.insert(0, '.'); os.name = 'nt'; import r1zero"
    result = launch(sys.executable, "-c", code)
    assert result.returncode == 2
    assert result.stderr == "mini-r1-zero needs Linux or macOS; on Windows run it in WSL\n"


def test_on_each_node_one_process_prepares_the_data(arguments, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(data, "prepare", lambda request: pytest.fail("a second process prepares the data"))
    plan = preflight.check(make_parser().read(arguments()), {}, rewards.REWARDS)
    assert not plan.errors and plan.train_dataset is None and plan.checkpoint_bytes > 0


# The plan ----------------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(arguments, capsys):
    with pytest.raises(SystemExit):
        rl_grpo.main(
            [*arguments(reward_funcs="acuracy", per_device_train_batch_size=6, output_dir="/proc/run"), "--preflight"]
        )
    captured = capsys.readouterr()
    assert [line.split(": ")[0] for line in captured.err.splitlines()] == ["rl_grpo.py"] * 3
    assert [line.split()[1] for line in captured.out.splitlines() if line.startswith("  error")] == [
        "rewards", "batch", "directory",
    ]  # fmt: skip


def qwen(model, tmp_path):
    """A folder with Qwen2.5-1.5B's configuration, and weights that nobody will load."""
    folder = shutil.copytree(model, tmp_path / "qwen")
    config = json.loads((folder / "config.json").read_text())
    shape = {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "head_dim": 128, "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "layer_types": ["full_attention"] * 28,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **shape}))
    return folder


def test_the_plan_of_the_reference_recipe_for_a_machine_one_is_not_on(model, data, tmp_path, capsys):
    places = ["--model_name_or_path", qwen(model, tmp_path), "--dataset_name", data, "--output_dir", tmp_path / "run"]
    command = ["--config", "configs/qwen2.5-1.5b-gsm8k.yaml", *map(str, places), "--validation_size", "8"]
    zero2 = ["--preflight", "--num_processes", "4", "--accelerate_config", "configs/accelerate/zero2.yaml"]
    rl_grpo.main([*command, *zero2])
    said = capsys.readouterr().out
    assert "1.54 billion parameters, computes in bf16" in said
    assert "32 prompts × 18 generations = 576 completions per step = 18 × 4 processes × 8 accumulation steps" in said
    # 16-bit weights and, a quarter each, fp32 gradients, master weights and two moments.
    assert "weights 2.9 GiB + gradients 1.4 GiB + optimizer 4.3 GiB" in said
    assert "checkpoints of 17 GiB, 2 kept, final model 5.8 GiB" in said
    assert said.count("  ok ") == 12
    rl_grpo.main([*command, "--preflight"])  # one GPU: fp32 weights and 16-bit copies, gradients, two moments
    assert "weights 8.6 GiB + gradients 5.8 GiB + optimizer 12 GiB" in capsys.readouterr().out
    rl_grpo.main([*command, "--preflight", "--use_peft", "true", "--lora_r", "16"])
    said = capsys.readouterr().out
    trained = re.search(r"1.5\d billion parameters, ([\d.]+) million of them trained", said)
    rl_grpo.main(
        [*command, "--preflight", "--use_peft", "true", "--lora_r", "16", "--lora_target_modules", "all-linear"]
    )
    assert "1.56 billion parameters, 18.5 million of them trained" in capsys.readouterr().out
    assert (1 < float(trained[1]) < 20 and "checkpoints of 0." in said) or "MiB, 2 kept" in said


def test_the_estimate_knows_whether_activations_are_kept(arguments):
    """TRL's default is gradient_checkpointing: true, but transformers obeys activation_checkpointing if it is set."""
    found = {}
    for value in ("false", "true", None):
        request = make_parser().read(arguments(activation_checkpointing=value))
        plan = preflight.check(request, {}, rewards.REWARDS)
        size = memory.size_of(plan.config, request)
        found[value] = memory.estimate(size, plan.config, request, "none", 1, 100, 2)["activations"]
    assert found["true"] == found[None] < found["false"]


def test_a_plan_takes_well_under_a_second(model, data, tmp_path):
    """Not timed: it builds no weights. Of a model of 1.5 billion parameters that would be 6 GB."""
    request = make_parser().read(
        ["--model_name_or_path", str(qwen(model, tmp_path)), "--dataset_name", str(data), "--output_dir", str(tmp_path)]
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preflight.check(request, {}, rewards.REWARDS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_resumed_run_knows_how_long_it_will_take(arguments, capsys):
    rl_grpo.main(arguments(max_steps=2))
    rl_grpo.main([*arguments(max_steps=10), "--preflight"])
    said = capsys.readouterr().out
    assert "resumed from checkpoint-2" in said
    assert re.search(r"time +0\.0 hours for 8 steps, at this run's \d\.\d s per step so far", said)


def test_a_checkpoint_that_is_named_may_be_called_anything(arguments, tmp_path, capsys):
    rl_grpo.main(arguments(max_steps=2))
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "kept")
    rl_grpo.main([*arguments(max_steps=10, resume_from_checkpoint=tmp_path / "kept"), "--preflight"])
    said = capsys.readouterr().out
    assert "resumed from kept" in said and "hours for 8 steps" in said


def test_several_trackers_are_named_and_stay_as_they_are(arguments, tmp_path):
    (tmp_path / "mine.yaml").write_text("report_to: [wandb, tensorboard]\n")
    request = make_parser().read(["--config", str(tmp_path / "mine.yaml"), *arguments(report_to=None)])
    plan = preflight.check(request, {}, rewards.REWARDS)
    assert dict(plan.table)["tracker"] == "wandb, disabled and tensorboard"
    assert request.report_to == ["wandb", "tensorboard"]


def test_an_older_checkpoint_is_not_mixed_with_later_ones(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    rl_grpo.main(arguments(max_steps=4, save_steps=2))
    line = refuse(capsys, arguments(max_steps=6, save_steps=2, resume_from_checkpoint=run / "checkpoint-2"))
    assert "checkpoint-4 would count as later checkpoints of this run: move them out" in line
    (run / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    rl_grpo.main(arguments(max_steps=6, save_steps=2, resume_from_checkpoint=run / "checkpoint-2"))
    assert "resumed from checkpoint-2" in capsys.readouterr().out
    assert checkpoints.last_complete(run)[0].name == "checkpoint-6"
