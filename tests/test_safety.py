"""What a model, a dataset or a key must never do: see docs/safety.md."""

import json
import os
import shutil

import pytest
import torch
from conftest import launch, write_jsonl

import eval as evaluation_script
import rl_grpo
from r1zero.arguments import make_parser

SECRET = "hf_" + "s3cr3tT0k3n" * 3


def model_with_code(model, folder, **config):
    """A model whose folder brings Python that leaves a mark when it is run."""
    folder = shutil.copytree(model, folder)
    mark = folder.parent / "it-ran"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    auto = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "auto_map": auto, **config}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["modeling_evil.Evil", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder, mark


def refuse(capsys, command, main=rl_grpo.main) -> str:
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_code_that_comes_with_a_model_is_not_run(arguments, model, data, tmp_path, capsys):
    folder, mark = model_with_code(model, tmp_path / "known")  # of an architecture that transformers has itself
    rl_grpo.main(arguments(model_name_or_path=folder, max_steps=1))
    write_jsonl(tmp_path / "test" / "test.jsonl", [{"question": "q", "answer": "#### 1"}])
    style = ["--dataset_name", str(tmp_path / "test"), "--prompt_style", "question", "--max_completion_length", "4"]
    evaluation_script.main([str(folder), *style])
    folder, _ = model_with_code(model, tmp_path / "unknown", model_type="evil")
    for command, main in (
        (arguments(model_name_or_path=folder), rl_grpo.main),
        ([str(folder), *style], evaluation_script.main),
    ):
        capsys.readouterr()
        line = refuse(capsys, command, main)
        assert "brings its own code, which runs only if you ask for it: --trust_remote_code true" in line
    assert not mark.exists()
    assert make_parser().read(arguments()).trust_remote_code is False


def test_weights_in_a_format_that_can_hold_code_are_not_loaded(arguments, model, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert "holds no *.safetensors" in refuse(capsys, arguments(model_name_or_path=folder))
    assert "holds no *.safetensors" in refuse(
        capsys, [str(folder), "--prompt_style", "question"], evaluation_script.main
    )


def test_a_dataset_with_a_script_is_data_only(arguments, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    mark = tmp_path / "it-ran"
    (folder / "data.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    rl_grpo.main([*arguments(dataset_name=folder), "--preflight"])
    assert not mark.exists()


def test_names_in_a_dataset_name_no_files(arguments, problems, tmp_path):
    """Columns and texts that look like paths, templates or code stay texts."""
    place = tmp_path / "inner"
    rows = [
        {"question": f"../../../escaped-{n} {{{{ 7*7 }}}} __import__('os')", "answer": f"/tmp/escaped-{n}\n#### {n}",
         "../escaped": "x", "output_dir": str(tmp_path / "escaped"), "step": "../../escaped"}
        for n in range(16)
    ]  # fmt: skip
    write_jsonl(place / "data" / "train.jsonl", rows)
    before = {str(path) for path in tmp_path.rglob("*")}
    rl_grpo.main(arguments(dataset_name=place / "data", output_dir=place / "run", max_steps=1))
    new = {str(path) for path in tmp_path.rglob("*")} - before
    assert new and all(path.startswith(str(place / "run")) for path in new)
    assert not list(tmp_path.rglob("*escaped*"))


def test_no_token_or_key_reaches_a_log_the_recipe_or_the_model_card(arguments, tmp_path):
    run = tmp_path / "run"
    command = arguments(report_to="wandb", hub_token=SECRET, max_steps=1, save_steps=1)
    result = launch(
        "python", "rl_grpo.py", *command,
        WANDB_API_KEY=SECRET + "w" * 10, HF_TOKEN=SECRET, WANDB_MODE="offline", HOME=str(tmp_path / "home"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert SECRET not in result.stdout + result.stderr
    files = [path for path in run.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"recipe.yaml", "README.md", "training_args.bin", "environment.jsonl", "trainer_state.json"} <= names
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    # A wrong request that has a token in it, too.
    result = launch("python", "rl_grpo.py", *command, "--num_generatoins", "2", HF_TOKEN=SECRET)
    assert result.returncode == 2 and SECRET not in result.stdout + result.stderr
    assert os.environ.get("HF_TOKEN") != SECRET
