"""Recipes: each of ours is parsed by the real parser, and what is wrong in one is refused in one line."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from trl import GRPOConfig, ModelConfig, ScriptArguments, TrlParser

import rewards
import rl_grpo
from r1zero import batch
from r1zero.arguments import R1ZeroArguments, make_parser
from r1zero.recipe import RequestError

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def read(tmp_path, text: str, *arguments: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return make_parser().read(["--config", str(path), *arguments])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_our_recipes_are_read_whole_and_their_batches_divide(path):
    request = make_parser().read(["--config", str(path)])
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(request, key) in (value, str(value)), key  # TRL reads pad_to_multiple_of from a string
    for name in request.reward_funcs:
        assert name in rewards.REWARDS
    for processes in (1, 2, 4) if path.name == "toy.yaml" else (1, 2, 4, 8):
        accumulation = batch.check(request, processes)
        completions = request.per_device_train_batch_size * processes * accumulation
        assert completions == request.prompts_per_step * request.num_generations


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_trls_own_parser_takes_our_recipes_too(path):
    parser = TrlParser((R1ZeroArguments, ScriptArguments, GRPOConfig, ModelConfig))
    assert parser.set_defaults_with_config(**yaml.safe_load(path.read_text())) == []


def test_the_reference_recipe_is_the_seeds():
    request = make_parser().read(["--config", "configs/qwen2.5-1.5b-gsm8k.yaml"])
    assert (request.model_name_or_path, request.dataset_name) == ("Qwen/Qwen2.5-1.5B", "openai/gsm8k")
    assert (request.learning_rate, request.prompts_per_step, request.num_generations) == (3e-6, 32, 18)
    assert request.bf16 is True and request.dtype == "float32"
    assert request.reward_funcs == ["accuracy", "format", "reflection", "length"]


def test_accelerate_configs_leave_processes_to_the_launcher_and_precision_to_the_recipe():
    from accelerate.commands.config.config_args import load_config_from_file

    names = {path.stem for path in (ROOT / "configs" / "accelerate").glob("*.yaml")}
    assert names == {"cpu", "single_gpu", "ddp", "zero2", "zero3", "fsdp2"}
    for name in names:
        path = ROOT / "configs" / "accelerate" / f"{name}.yaml"
        assert "num_processes" not in yaml.safe_load(path.read_text())
        config = load_config_from_file(str(path))  # accelerate refuses unknown keys
        assert config.mixed_precision is None  # the recipe decides


def test_command_line_over_recipe_over_default(tmp_path):
    request = read(tmp_path, "num_generations: 4\nlearning_rate: 3e-6\n", "--num_generations", "6")
    assert (request.num_generations, request.learning_rate, request.beta) == (6, 3e-6, 0.0)
    assert make_parser().read([f"--config={tmp_path / 'mine.yaml'}"]).num_generations == 4


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
        ("learning_rate: 3.e-6", "learning_rate", 3e-6),
        ("learning_rate: '0.5'", "learning_rate", 0.5),
        ("num_generations: '8'", "num_generations", 8),
        ("max_steps: 1_000", "max_steps", 1000),
        ("log_completions: on", "log_completions", True),
        ("log_completions: 'False'", "log_completions", False),
        ("reward_weights: 2", "reward_weights", [2.0]),
        ("run_name: 5", "run_name", "5"),
        ("run_name: 2026-11-22", "run_name", "2026-11-22"),
        ("run_name: 'no'", "run_name", "no"),
        ("? seed\n: 7", "seed", 7),
        ("{seed: 7}", "seed", 7),
        ("dataset_name: a folder/with a space", "dataset_name", "a folder/with a space"),
    ],
)
def test_values_are_read_as_plainly_meant(tmp_path, line, key, value):
    assert getattr(read(tmp_path, line), key) == value


# What can be wrong with a line of a recipe, and what is said of it after the file's name and the line's number.
WRONG_LINES = {
    # keys
    "num_generatoins: 8": "unknown key 'num_generatoins': did you mean num_generations?",
    "prompt-style: chat": "unknown key 'prompt-style': did you mean prompt_style?",
    "Learning_Rate: 1e-4": "unknown key 'Learning_Rate': did you mean learning_rate?",
    "reward_functions: [accuracy]": "did you mean reward_funcs?",
    "per_device_batch_size: 8": "did you mean per_device_",
    "max_prompt_length: 512": "unknown key 'max_prompt_length'",  # TRL 1 has it no more
    "torch_dtype: float32": "unknown key 'torch_dtype'",  # nor this
    "qqqq: 1": "unknown key 'qqqq' (--help lists",
    "5: 1": "unknown key 5",
    "true: 1": "unknown key True",
    "null: 1": "unknown key None",
    "[seed]: 1": "unknown key",
    "config: other.yaml": "unknown key 'config'",
    "help: true": "unknown key 'help'",
    "<<: {seed: 1}": "not valid YAML: could not determine a constructor for the tag",
    "beta: 0.1": "beta is already on line 2: keep one of the two",
    # whole numbers
    "num_generations: 8.5": "num_generations: 8.5 is not a whole number",
    "num_generations: many": "num_generations: 'many' is not a whole number",
    "num_generations: [8]": "num_generations: takes one value, not [8]",
    "num_generations: {a: 8}": "num_generations: takes one value",
    "num_generations:": "num_generations has no value",
    "num_generations: ~": "num_generations has no value",
    "num_generations: true": "num_generations: True is not a whole number",
    "num_generations: '8 '": None,
    "num_generations: 8,": "num_generations: '8,' is not a whole number",
    "num_generations: 1e1": "num_generations: '1e1' is not a whole number",
    "max_steps: 1 000": "max_steps: '1 000' is not a whole number",
    "max_completion_length: 384 tokens": "max_completion_length: '384 tokens' is not a whole number",
    "seed: 0x": "seed: '0x' is not a whole number",
    "seed: 2026-11-22": "is not a whole number",
    # numbers
    "learning_rate: fast": "learning_rate: 'fast' is not a number",
    "learning_rate: 3e-6,": "learning_rate: '3e-6,' is not a number",
    "learning_rate: 3 e-6": "learning_rate: '3 e-6' is not a number",
    "learning_rate: 3*10^-6": "is not a number",
    "learning_rate: 1/3": "is not a number",
    "learning_rate: 0,1": "is not a number",
    "learning_rate: .nan": "learning_rate: nan is not a finite number",
    "learning_rate: .inf": "learning_rate: inf is not a finite number",
    "learning_rate: yes": "learning_rate: True is not a number",
    "learning_rate: [1, 2]": "learning_rate: takes one value",
    "learning_rate:": "learning_rate has no value",
    "temperature: !!str hot": "temperature: 'hot' is not a number",
    "epsilon: 20%": "epsilon: '20%' is not a number",
    # booleans
    "bf16: maybe": "bf16: Truthy value expected",
    "log_completions: 2": "log_completions: Truthy value expected",
    "log_completions: [true]": "log_completions: takes one value",
    "log_completions: tru": "log_completions: Truthy value expected",
    # choices
    "prompt_style: poem": "prompt_style: 'poem' is not one of chat, r1_zero, question",
    "eval_strategy: sometimes": "eval_strategy: 'sometimes' is not one of no, steps, epoch",
    "optim: adamW": "optim: 'adamW' is not one of",
    "dtype: fp32": "dtype: 'fp32' is not one of",
    "lr_scheduler_type: cosin": "lr_scheduler_type: 'cosin' is not one of",
    # texts
    "hub_model_id: [a, b]": "hub_model_id: takes one value",
    "run_name: yes": "run_name: takes a text, but YAML reads True: put it in quotes",
    "dataset_name: {path: gsm8k}": "dataset_name: takes one value",
    # lists
    "reward_funcs: []": "reward_funcs: takes a list of values, not []",
    "reward_funcs: {accuracy: 1}": "reward_funcs: takes a list of values",
    "reward_funcs: [[accuracy]]": "reward_funcs: takes a list of values",
    "reward_funcs: [accuracy, ]x": "not valid YAML",
    "reward_funcs: [accuracy, null]": "reward_funcs: takes a list of values",
    "reward_weights: [1, heavy]": "reward_weights: 'heavy' is not a number",
    "reward_weights: [1, .nan]": "reward_weights: nan is not a finite number",
    # YAML
    "\tseed: 1": "not valid YAML: found character '\\t' that cannot start any token",
    "seed: 1: 2": "not valid YAML: mapping values are not allowed here",
    "run_name: [": "not valid YAML",
    "run_name: 'open": "not valid YAML: found unexpected end of stream",
    "run_name: @me": "not valid YAML",
    "run_name: !!python/object:os.system {}": "not valid YAML: could not determine a constructor",
    "run_name: *nobody": "not valid YAML: found undefined alias",
    "seed 1": "not valid YAML",
    "  seed: 1": "not valid YAML",
    "- seed": "not valid YAML",
    "---\nseed: 1": "not valid YAML",
    "env: 5": "env must hold `NAME: value` lines",
}
assert len(WRONG_LINES) > 60


@pytest.mark.parametrize("wrong", WRONG_LINES)
def test_a_wrong_line_is_refused_with_its_fix_before_any_model_is_loaded(tmp_path, wrong, capsys, monkeypatch):
    monkeypatch.setattr(rl_grpo, "Trainer", lambda **_: pytest.fail("a model was loaded"))
    path = tmp_path / "mine.yaml"
    path.write_text(f"# a comment\nbeta: 0.04\noutput_dir: {tmp_path}/run\n{wrong}\n")
    with pytest.raises(SystemExit) as end:
        rl_grpo.main(["--config", str(path)])
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert not (tmp_path / "run").exists()
    if WRONG_LINES[wrong] is None:  # read as it is plainly meant: what is missing is the model
        assert all("no model_name_or_path" in line for line in said), said
        return
    assert len(said) == 1
    place = re.match(rf"rl_grpo.py: {re.escape(str(path))}, line (\d+): ", said[0])
    assert place and int(place[1]) in (4, 5), said  # YAML sees some mistakes only in the line after
    assert WRONG_LINES[wrong] in said[0], said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "mine.yaml must hold `key: value` lines, see configs/toy.yaml"),
        ("# nothing\n\n", "must hold `key: value` lines"),
        ("- 1", "must hold `key: value` lines"),
        ("accuracy", "must hold `key: value` lines"),
        ("null", "must hold `key: value` lines"),
        ("seed: 1\nseed: 2", "mine.yaml, line 2: seed is already on line 1"),
        ("seed: 1\n\x07", "not valid YAML"),
        (b"seed: \xff\xfe", "is not a UTF-8 text file"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, complaint):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RequestError) as refusal:
        make_parser().read(["--config", str(path)])
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(RequestError, match="there is no recipe"):
        make_parser().read(["--config", str(path / "below")])


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
        make_parser().read(arguments)
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_resolved_recipe_reads_back_the_same_and_holds_no_secret(tmp_path):
    parser = make_parser()
    arguments = ["--config", "configs/toy.yaml", "--hub_token", "hf_secret", "--seed", "7", "--preflight"]
    resolved = parser.resolve(parser.read(arguments))
    assert resolved["seed"] == 7 and "hf_secret" not in str(resolved) and "preflight" not in resolved
    path = Path(tmp_path / "recipe.yaml")
    path.write_text(yaml.safe_dump(resolved))
    again = make_parser()
    assert again.resolve(again.read(["--config", str(path)])) == resolved


def test_help_shows_our_fields_first_each_in_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        rl_grpo.main(["--help"])
    assert end.value.code == 0
    options = capsys.readouterr().out.split("options:")[1]
    names = [line.split()[0] for line in options.splitlines() if line.startswith("  --")]
    ours = list(R1ZeroArguments.__dataclass_fields__)
    assert names[: len(ours)] == [f"--{name}" for name in ours]
    for name, field in R1ZeroArguments.__dataclass_fields__.items():
        assert 10 < len(field.metadata["help"]) < 120, name
