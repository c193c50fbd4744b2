"""Recipes: each of ours is parsed by the real parser, and what is wrong in one is refused in one line."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from trl import GRPOConfig, ModelConfig, ScriptArguments, TrlParser

import preflight
import rewards
import rl_grpo
from recipe import RequestError

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def read(tmp_path, text: str, *arguments: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return rl_grpo.make_parser().read(["--config", str(path), *arguments])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_our_recipes_are_read_whole_and_their_batches_divide(path):
    request = rl_grpo.make_parser().read(["--config", str(path)])
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(request, key) == value, key
    for name in request.reward_funcs:
        assert name in rewards.REWARDS
    for processes in (1, 2, 4) if path.name == "toy.yaml" else (1, 2, 4, 8):
        accumulation = preflight.check_batch(request, processes)
        completions = request.per_device_train_batch_size * processes * accumulation
        assert completions == request.prompts_per_step * request.num_generations


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_trls_own_parser_takes_our_recipes_too(path):
    parser = TrlParser((rl_grpo.R1ZeroArguments, ScriptArguments, GRPOConfig, ModelConfig))
    assert parser.set_defaults_with_config(**yaml.safe_load(path.read_text())) == []


def test_the_reference_recipe_is_the_seeds():
    request = rl_grpo.make_parser().read(["--config", "configs/qwen2.5-1.5b-gsm8k.yaml"])
    assert (request.model_name_or_path, request.dataset_name) == ("Qwen/Qwen2.5-1.5B", "openai/gsm8k")
    assert (request.learning_rate, request.prompts_per_step, request.num_generations) == (3e-6, 32, 18)
    assert request.bf16 is True and request.dtype == "float32"
    assert request.reward_funcs == ["accuracy", "format", "reflection", "length"]


def test_topologies_leave_the_number_of_processes_to_the_launcher():
    from accelerate.commands.config.config_args import load_config_from_file

    names = {path.stem for path in (ROOT / "configs" / "accelerate").glob("*.yaml")}
    assert names == {"cpu", "single_gpu", "ddp", "zero2", "zero3", "fsdp2"}
    for name in names:
        path = ROOT / "configs" / "accelerate" / f"{name}.yaml"
        assert "num_processes" not in yaml.safe_load(path.read_text())
        config = load_config_from_file(str(path))  # accelerate refuses unknown keys
        assert config.mixed_precision == ("no" if name == "cpu" else "bf16")


def test_command_line_over_recipe_over_default(tmp_path):
    request = read(tmp_path, "num_generations: 4\nlearning_rate: 3e-6\n", "--num_generations", "6")
    assert (request.num_generations, request.learning_rate, request.beta) == (6, 3e-6, 0.0)
    assert rl_grpo.make_parser().read([f"--config={tmp_path / 'mine.yaml'}"]).num_generations == 4


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 3e-6", "learning_rate", 3e-6),  # a text, says YAML
        ("reward_funcs: accuracy", "reward_funcs", ["accuracy"]),
        ("reward_weights: [1, 0.5]", "reward_weights", [1.0, 0.5]),
        ("bf16: 'yes'", "bf16", True),
        ("eval_strategy: no", "eval_strategy", "no"),  # False, says YAML
        ("report_to: [wandb, tensorboard]", "report_to", ["wandb", "tensorboard"]),
        ("model_init_kwargs: {use_cache: false}", "model_init_kwargs", {"use_cache": False}),
        ("prompts_per_step: null", "prompts_per_step", None),
        ("dataset_name: a folder/with a space", "dataset_name", "a folder/with a space"),
    ],
)
def test_values_are_read_as_plainly_meant(tmp_path, line, key, value):
    assert getattr(read(tmp_path, line), key) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("num_generatoins: 8", "mine.yaml: unknown key 'num_generatoins': did you mean num_generations?"),
        ("prompt-style: chat", "unknown key 'prompt-style': did you mean prompt_style?"),
        ("qqqq: 1", "unknown key 'qqqq' (see --help"),
        ("num_generations: 8.5", "mine.yaml: num_generations: 8.5 is not a whole number"),
        ("num_generations: many", "num_generations: 'many' is not a whole number"),
        ("num_generations: [8]", "num_generations: takes one value, not [8]"),
        ("learning_rate: fast", "learning_rate: 'fast' is not a number"),
        ("bf16: maybe", "bf16: Truthy value expected"),
        ("prompt_style: poem", "prompt_style: 'poem' is not one of chat, r1_zero, question"),
        ("", "must hold `key: value` lines"),
        ("- 1", "must hold `key: value` lines"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, text, complaint):
    with pytest.raises(RequestError) as refusal:
        read(tmp_path, text)
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--num_generatoins", "8"], "unknown argument --num_generatoins: did you mean --num_generations?"),
        (["--prompts-per-stap=8"], "did you mean --prompts_per_step?"),
        (["--num_gen", "8"], "unknown argument --num_gen"),  # no silent abbreviations
        (["--num_generations", "8.5"], "invalid int value: '8.5'"),
        (["--prompt_style", "poem"], "invalid choice: 'poem'"),
        (["configs/toy.yaml"], "unexpected argument 'configs/toy.yaml'"),
        (["--config", "configs/toi.yaml"], "there is no recipe configs/toi.yaml; there are configs/"),
        (["--config"], "expected one argument"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, complaint):
    with pytest.raises(RequestError) as refusal:
        rl_grpo.make_parser().read(arguments)
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_resolved_recipe_reads_back_the_same_and_holds_no_secret(tmp_path):
    parser = rl_grpo.make_parser()
    arguments = ["--config", "configs/toy.yaml", "--hub_token", "hf_secret", "--seed", "7", "--preflight"]
    resolved = parser.resolve(parser.read(arguments))
    assert resolved["seed"] == 7 and "hf_secret" not in str(resolved) and "preflight" not in resolved
    path = Path(tmp_path / "recipe.yaml")
    path.write_text(yaml.safe_dump(resolved))
    again = rl_grpo.make_parser()
    assert again.resolve(again.read(["--config", str(path)])) == resolved


def test_help_shows_our_fields_first_each_in_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        rl_grpo.main(["--help"])
    assert end.value.code == 0
    options = capsys.readouterr().out.split("options:")[1]
    names = [line.split()[0] for line in options.splitlines() if line.startswith("  --")]
    ours = list(rl_grpo.R1ZeroArguments.__dataclass_fields__)
    assert names[: len(ours)] == [f"--{name}" for name in ours]
    for name, field in rl_grpo.R1ZeroArguments.__dataclass_fields__.items():
        assert 10 < len(field.metadata["help"]) < 120, name
