"""What is wrong with a request is said in one line, with exit code 2, before weights are loaded."""

import itertools
import json
import os
import re
import resource
import shutil
import socket
import time
from argparse import Namespace

import pytest
import torch
from conftest import save_tiny_model, write_jsonl
from transformers import AutoTokenizer

import checkpoints
import estimates
import evaluate
import gsm8k
import preflight
import rl_grpo
from recipe import RequestError


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
        ({"resume_from_checkpoint": "nowhere"}, "is no complete checkpoint"),
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
    assert f"{tmp_path}/data/train.jsonl, row 3: the gold cannot be read" in line
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
    assert line.endswith("there is no model folder outputs/toy-base: python toy.py makes it")


def test_a_model_folder_is_not_trained_over(arguments, model, capsys):
    assert "holds a model that no run of this script wrote" in refuse(capsys, arguments(output_dir=model))


def test_preflight_alone_says_the_plan_for_any_number_of_processes_and_trains_nothing(arguments, tmp_path, capsys):
    rl_grpo.main([*arguments(validation_size=8), "--preflight", "--num_processes", "2"])
    said = capsys.readouterr().out
    assert "4 prompts × 4 generations = 16 completions a step = 8 × 2 processes × 1 accumulation steps" in said
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
    for prompts, generations, size, processes in itertools.product((1, 3, 32), (2, 7, 18), range(1, 20), (1, 2, 3, 8)):
        request = batch(prompts_per_step=prompts, num_generations=generations, per_device_train_batch_size=size)
        try:
            accumulation = preflight.check_batch(request, processes)
            assert accumulation * size * processes == prompts * generations
        except RequestError as error:
            refused += 1
            for key, values in re.findall(r"nearest (\w+) ([\d or]+)", str(error)):
                for value in values.split(" or "):
                    mended = Namespace(**{**vars(request), key: int(value)})
                    assert preflight.check_batch(mended, processes) >= 1
    assert refused > 100


def test_without_prompts_per_step_trls_rule_holds_and_the_mends_satisfy_it():
    for generations, size, processes, accumulation in itertools.product((4, 18), range(1, 40), (1, 2, 8), (1, 2, 3)):
        request = batch(
            num_generations=generations, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
        )
        try:
            assert preflight.check_batch(request, processes) == accumulation
            assert size * processes * accumulation % generations == 0
        except RequestError as error:
            values = re.search(r"nearest per_device_train_batch_size ([\d or]+)", str(error))[1]
            for value in values.split(" or "):
                request.per_device_train_batch_size = int(value)
                assert preflight.check_batch(request, processes) == accumulation


# Rewards that do not teach what is wanted ----------------------------------------------------------------------


def test_rewards_that_do_not_pay_a_right_answer_most_are_refused(arguments, tmp_path, capsys, monkeypatch):
    (tmp_path / "odd_rewards.py").write_text(
        "def right_is_wrong(completions, solution, **kwargs):\n"
        "    from rewards import accuracy\n"
        "    return [1 - value for value in accuracy(completions, solution)]\n"
        "def raises(completions, **kwargs):\n    return [1 / len(c[0]['content']) for c in completions]\n"
        "def one_for_all(completions, **kwargs):\n    return [1.0]\n"
        "def number(completions, **kwargs):\n    return 1.0\n"
        "def endless(completions, **kwargs):\n    return [float('inf')] * len(completions)\n"
        "def words(completions, **kwargs):\n    return ['good'] * len(completions)\n"
        "def nothing(completions, **kwargs):\n    return [None] * len(completions)\n"
        "async def later(completions, solution, **kwargs):\n"
        "    from rewards import accuracy\n    return accuracy(completions, solution)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pays = "the rewards {} pay {} for a right answer, {} for a wrong one and {} for none: no training gets more right"
    for names, weights, complaint in (
        (["format", "length"], None, pays.format("format length", "1.0", "1.0", "0")),
        (["accuracy", "odd_rewards.right_is_wrong"], None, "no training gets more right"),
        (["accuracy", "format"], ["0", "1"], pays.format("accuracy format", "1", "1", "0")),
        (["accuracy"], ["-1"], pays.format("accuracy", "-1", "0", "0")),
        (["accuracy", "odd_rewards.raises"], None, "reward odd_rewards.raises raises ZeroDivisionError"),
        (
            ["accuracy", "odd_rewards.one_for_all"],
            None,
            "one_for_all gives [1.0] for 8 completions: a reward gives a list",
        ),
        (["accuracy", "odd_rewards.number"], None, "number gives 1.0 for 8 completions"),
        (["accuracy", "odd_rewards.endless"], None, "endless gives [inf, inf"),
        (["accuracy", "odd_rewards.words"], None, "words gives ['good', 'good'"),
        (["odd_rewards.nothing"], None, "pay 0 for a right answer, 0 for a wrong one and 0 for none"),
        (["odd_rewards.later", "odd_rewards.nothing"], None, None),
        (["accuracy", "get_soft_overlong_punishment", "think_format_reward"], None, None),
        (["accuracy_reward"], None, "no training gets more right"),  # TRL's reads only LaTeX
    ):
        command = [*arguments(reward_funcs=names, reward_weights=weights), "--preflight"]
        if complaint:
            assert complaint.split("1.0 for a right")[0] in refuse(capsys, command)
        else:
            rl_grpo.main(command)


# Room and precision --------------------------------------------------------------------------------------------


def test_prompts_that_do_not_fit_the_context_are_counted(arguments, problems, tmp_path, capsys):
    small = save_tiny_model(tmp_path / "small", [row["question"] for row in problems], context=60)
    line = refuse(capsys, arguments(model_name_or_path=small, max_completion_length=16))
    assert re.search(
        r"\d+ of 64 prompts \(the longest of \d+ tokens\) and a completion of 16 do not fit .* context of 60", line
    )
    room = int(re.search(r"max_completion_length (\d+), or a shorter prompt_style", line)[1])
    rl_grpo.main([*arguments(model_name_or_path=small, max_completion_length=room), "--preflight"])
    assert f"+ {room} to write, of the model's 60" in capsys.readouterr().out
    refuse(capsys, arguments(model_name_or_path=small, max_completion_length=room + 1))
    line = refuse(capsys, arguments(model_name_or_path=small, prompt_style="r1_zero"))
    assert "64 of 64 prompts" in line and line.endswith("take a shorter prompt_style")


def test_prompt_lengths_are_the_tokens_that_training_sees(model, problems):
    tokenizer = AutoTokenizer.from_pretrained(model)
    for style in ("chat", "r1_zero", "question"):
        prompts = [gsm8k.to_prompt(row["question"], style) for row in problems]
        exact = [len(evaluate.tokenize(tokenizer, row["question"], style)) for row in problems]
        assert estimates.prompt_tokens(tokenizer, prompts) == exact
        many = sorted(exact * 40, reverse=True)  # of many, only the longest are tokenized
        assert estimates.long_prompts(tokenizer, prompts * 40) == (many[0], many[32])


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
    assert "TRL turns the weights themselves to 16 bits" in line and "zero2.yaml" in line
    rl_grpo.main([*arguments(**batching, per_device_train_batch_size=4), *zero])


@pytest.mark.parametrize("bf16", ["true", None])  # None is TRL's default, and means true
def test_bf16_on_a_cpu_is_warned_of(arguments, bf16):
    request = rl_grpo.make_parser().read(arguments(bf16=bf16))
    plan = preflight.check(request, {})
    assert [f.check for f in plan.findings if f.status == "warning"] == ["precision"]
    assert "computed in bf16" in dict(plan.table)["model"]


# The machine -----------------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_written_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "is a file" in refuse(capsys, arguments(output_dir=tmp_path / "file"))
    assert "/proc/run cannot be written (" in refuse(capsys, arguments(output_dir="/proc/run"))


def test_a_port_that_is_taken_is_refused_before_the_launch(arguments, monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setenv("MAIN_PROCESS_PORT", str(other.getsockname()[1]))
        line = refuse(capsys, [*arguments(), "--preflight"])
        assert f"port {other.getsockname()[1]} is taken" in line and "another MAIN_PROCESS_PORT" in line
        monkeypatch.setenv("MASTER_PORT", "1")  # under the launcher, which has taken it itself
        rl_grpo.main([*arguments(), "--preflight"])
    monkeypatch.delenv("MASTER_PORT")
    for wrong in ("many", "70000"):
        monkeypatch.setenv("MAIN_PROCESS_PORT", wrong)
        assert "is no port" in refuse(capsys, [*arguments(), "--preflight"])


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
    plan = preflight.Plan(world_size=4)
    with pytest.raises(RequestError, match="4 processes on a machine with 2 GPUs: NUM_PROCESSES=2"):
        preflight.check_topology("configs/accelerate/ddp.yaml", plan)
    preflight.check_topology("configs/accelerate/cpu.yaml", plan)
    assert plan.findings[0].message == "it is of CPUs, and leaves 2 GPUs idle"


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
    assert "1.54 billion parameters, computed in bf16" in said
    assert "32 prompts × 18 generations = 576 completions a step = 18 × 4 processes × 8 accumulation steps" in said
    # 16-bit weights and gradients and, a quarter each, gradients, fp32 master weights and two moments.
    assert "weights 2.9 GiB + gradients 0.7 GiB + optimizer 4.3 GiB" in said
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


def test_a_plan_takes_well_under_a_second(model, data, tmp_path):
    """Not timed: it builds no weights. Of a model of 1.5 billion parameters that would be 6 GB."""
    request = rl_grpo.make_parser().read(
        ["--model_name_or_path", str(qwen(model, tmp_path)), "--dataset_name", str(data), "--output_dir", str(tmp_path)]
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preflight.check(request, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_resumed_run_knows_how_long_it_will_take(arguments, capsys):
    rl_grpo.main(arguments(max_steps=2))
    rl_grpo.main([*arguments(max_steps=10), "--preflight"])
    said = capsys.readouterr().out
    assert "resumed from checkpoint-2" in said
    assert re.search(r"time +0\.0 hours for 8 steps, at this run's \d\.\d s a step so far", said)


def test_a_checkpoint_that_is_named_may_be_called_anything(arguments, tmp_path, capsys):
    rl_grpo.main(arguments(max_steps=2))
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "kept")
    rl_grpo.main([*arguments(max_steps=10, resume_from_checkpoint=tmp_path / "kept"), "--preflight"])
    said = capsys.readouterr().out
    assert "resumed from kept" in said and "hours for 8 steps" in said


def test_several_trackers_are_named_and_stay_as_they_are(arguments, tmp_path):
    (tmp_path / "mine.yaml").write_text("report_to: [wandb, tensorboard]\n")
    request = rl_grpo.make_parser().read(["--config", str(tmp_path / "mine.yaml"), *arguments(report_to=None)])
    plan = preflight.check(request, {})
    assert dict(plan.table)["tracker"] == "wandb, disabled and tensorboard"
    assert request.report_to == ["wandb", "tensorboard"]


def test_an_older_checkpoint_is_not_mixed_with_later_ones(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    rl_grpo.main(arguments(max_steps=4, save_steps=2))
    line = refuse(capsys, arguments(max_steps=6, save_steps=2, resume_from_checkpoint=run / "checkpoint-2"))
    assert "checkpoint-4 would be taken for this run's later ones: move them out" in line
    (run / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    rl_grpo.main(arguments(max_steps=6, save_steps=2, resume_from_checkpoint=run / "checkpoint-2"))
    assert "resumed from checkpoint-2" in capsys.readouterr().out
    assert checkpoints.last_whole(run)[0].name == "checkpoint-6"
