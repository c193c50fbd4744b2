"""What is wrong with a request is said in one line, with exit code 2, before weights are loaded."""

import itertools
import re
import shutil
from argparse import Namespace

import pytest
from conftest import write_jsonl

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


# Where a run stands --------------------------------------------------------------------------------------


def test_the_last_complete_checkpoint_is_resumed(tmp_path):
    assert preflight.last_checkpoint(tmp_path) is None
    for step, complete in ((2, True), (10, True), (20, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    assert preflight.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
