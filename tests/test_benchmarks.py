"""What the benchmarks compute from what they measure; what they measure is in benchmarks/README.md, and in no test."""

import re
from types import SimpleNamespace

import pytest
from conftest import ROOT
from transformers import AutoTokenizer, GenerationConfig

from benchmarks import limits, robust, scale, step
from r1zero.arguments import make_parser


def test_the_limit_counts_a_models_traffic_and_arithmetic():
    config = SimpleNamespace(hidden_size=8, num_attention_heads=4, num_hidden_layers=3, num_key_value_heads=2)
    facts = {
        "config": config, "parameters": 1000, "number": 2, "completions": 6, "generations": 3, "prompt": 9.0,
        "completion": 4.0, "longest": 5.0,
    }  # fmt: skip
    # Weights five times; keys and values of 3 layers × 2 heads × 2 numbers, of 6 rows × 4 tokens that see 9 + 2 before.
    read = 5 * 1000 * 2 + 6 * 4 * 11 * (2 * 3 * 2 * 2 * 2)
    tokens = 6 * (9 / 3 + 4)
    slow_memory = limits.of_step(**facts, rate=1e12, traffic=1e3)
    assert slow_memory == pytest.approx({"generation": read / 1e3, "training": 6 * 1000 * tokens / 1e12})
    slow_cores = limits.of_step(**facts, rate=1e3, traffic=1e12)
    assert slow_cores == pytest.approx({"generation": 2 * 1000 * tokens / 1e3, "training": 6 * 1000 * tokens / 1e3})


def test_the_fit_finds_what_the_points_were_made_of():
    factors = [0.1, 2e-3, 3e-12, 4e-8, 5e-6]
    points = [
        {**scale.BASE, name: value, "parameters": 1000 * (value if name == "hidden" else 128) ** 2, "prompt": 30.0}
        for name, values in scale.SIZES.items()
        for value in (scale.BASE[name], *values)
    ]
    for point in points:
        point["seconds"] = sum(factor * term for factor, term in zip(factors, scale.terms(point), strict=True))
    assert scale.fit(points) == pytest.approx(factors, rel=1e-4)


def test_trl_is_told_all_end_tokens(model, tmp_path):
    declared = GenerationConfig.from_pretrained(step.declare_ends(str(model), "question", tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.convert_ids_to_tokens(declared.eos_token_id) == ["<|endoftext|>", "<|im_end|>"]


def test_the_robust_settings_are_those_of_the_recipe():
    request = make_parser().read(["--config", "configs/toy.yaml", *robust.robust_settings()])
    assert request.reward_funcs == ["accuracy", "format", "reflection_if_correct", "length_if_correct"]
    assert request.mask_truncated_completions and request.multi_objective_aggregation == "normalize_then_sum"
    assert request.reward_weights[0] == 1.0 and len(request.reward_weights) == 4


def test_every_command_of_the_log_is_there():
    log = (ROOT / "benchmarks" / "README.md").read_text()
    scripts = re.findall(r"benchmarks/(\w+\.py)", log)
    assert {"rewards.py", "startup.py", "step.py", "scale.py", "robust.py"} <= set(scripts)
    assert all((ROOT / "benchmarks" / script).is_file() for script in scripts)
    for arguments in re.findall(r"--ours\s(--[^`\n]*)", log):
        make_parser().read(["--config", "configs/qwen2.5-1.5b-gsm8k.yaml", *arguments.split()])
