"""How a step's time and memory grow with completions, generations, length, model and processes; and a plan for GPUs.

    python -m r1zero.toy; python benchmarks/scale.py    # one size changed at a time; two CPU cores, about eight minutes
    python benchmarks/scale.py --plan               # memory a GPU and the least time a step, by estimate; seconds

Each point is a training of a few steps with random weights, whose completions are all as long as they may be. The model
that is fitted to the points says how a step's seconds come about:

    t = a + b L + c n W (L + P / G) + d n L (P + L / 2) + e n (L + P / G)

with n completions a core, of L tokens, G to a prompt of P tokens, and W parameters: what a step costs in any case; what
a decoded token costs however many rows there are; arithmetic; reading the cache; and work that follows the tokens but
not the model's size. No term is negative, and relative errors count. Memory is fitted by the estimate of preflight
plus what the libraries take.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy
import scipy.optimize
import torch

sys.path[0] = str(Path(__file__).parent)

import limits  # noqa: E402
import step  # noqa: E402  (also puts the repository on the path)

from r1zero import data, memory  # noqa: E402
from r1zero.arguments import make_parser  # noqa: E402

CONFIG, REFERENCE = "configs/toy.yaml", "configs/qwen2.5-1.5b-gsm8k.yaml"
BASE = {"completions": 128, "generations": 16, "length": 64, "hidden": 128, "processes": 2}
SIZES = {
    "completions": (64, 256, 512), "generations": (4, 8, 32), "length": (32, 128, 256), "hidden": (64, 256, 512),
    "processes": (1, 4),
}  # fmt: skip
MICRO_BATCH = 32
STEPS, WARM_UP = 8, 2
TERMS = ("a step", "a decoded token", "arithmetic", "cache", "tokens")

# Beside step.SHAPES: the larger Qwen2.5, from their configurations.
LARGER = {
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    "14b": {"hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
            "intermediate_size": 13824, "vocab_size": 152064, "tie_word_embeddings": False},
    "32b": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
            "intermediate_size": 27648, "vocab_size": 152064, "tie_word_embeddings": False},
}  # fmt: skip
# NVIDIA's data sheet of the H100 SXM: bytes and dense bf16 operations per second. Not measured.
H100 = {"traffic": 3.35e12, "rate": 989e12}
PROMPT = 200  # tokens, about: a long question of GSM8K with R1-Zero's instructions


def read_request(config: str):
    request = make_parser().read(["--config", config])
    request.gradient_accumulation_steps = 1
    return request


# ---------------------------------------------------------------------------------------------------------
# Measured points
# ---------------------------------------------------------------------------------------------------------


def measure(point: dict, scratch: Path, texts: list[str]) -> dict:
    """A training of one size: its median step in seconds, and bytes of its first process and by the estimate."""
    shape = {
        "hidden_size": point["hidden"], "intermediate_size": 2 * point["hidden"], "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 4096,
    }  # fmt: skip
    folder = step.make_shape(shape, texts, scratch / "shape")
    request = read_request(CONFIG)
    request.model_name_or_path = str(folder)
    processes, length = point["processes"], point["length"]
    micro = min(MICRO_BATCH, point["completions"] // processes)
    run = scratch / "run"
    ours = {
        "prompts_per_step": point["completions"] // point["generations"], "num_generations": point["generations"],
        "per_device_train_batch_size": micro, "max_completion_length": length,
        "generation_kwargs": json.dumps({"min_new_tokens": length}), "eval_on_start": "false",
    }  # fmt: skip
    arguments = argparse.Namespace(
        accelerate_config="configs/accelerate/cpu.yaml", config=CONFIG,
        ours=[word for key, value in ours.items() for word in (f"--{key}", str(value))],
    )  # fmt: skip
    threads = max(1, (os.cpu_count() or 1) // processes)
    step.run_once(step.our_command(arguments, request, STEPS, run, processes), scratch / "log", threads)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    timing = json.loads((run / "timing.json").read_text())
    shutil.rmtree(run)
    config = step.make_config(shape)
    size = memory.size_of(config, request)
    prompt = timing["tokens"] / point["completions"] - length
    request.max_completion_length, request.per_device_train_batch_size = length, micro
    estimate = memory.estimate(
        size, config, request, "none", processes, round(prompt), point["completions"] // (micro * processes)
    )
    return {
        **point, "parameters": size.total, "prompt": prompt,
        "bytes": timing["peak_bytes"], "estimate": estimate["peak"],
        "seconds": statistics.median([entry["step_time"] for entry in history if "step_time" in entry][WARM_UP:]),
    }  # fmt: skip


def terms(point: dict) -> list[float]:
    """The model's terms of a point, without their coefficients."""
    each = point["completions"] / min(point["processes"], os.cpu_count() or 1)
    length, prompt = point["length"], point["prompt"]
    tokens = each * (length + prompt / point["generations"])
    return [1.0, length, tokens * point["parameters"], each * length * (prompt + length / 2), tokens]


def fit(points: list[dict]) -> list[float]:
    """The model's coefficients, none below 0, for the least squares of relative errors."""
    rows = numpy.array([terms(point) for point in points])
    seconds = numpy.array([point["seconds"] for point in points])
    scale = (rows / seconds[:, None]).max(axis=0)  # terms differ by ten orders of magnitude
    found, _ = scipy.optimize.nnls(rows / seconds[:, None] / scale, numpy.ones(len(points)))
    return list(found / scale)


def grow() -> None:
    points = []
    texts = [row["question"] for row in data.load(read_request(CONFIG).dataset_name).select(range(500))]
    sizes = [BASE, *({**BASE, name: value} for name, values in SIZES.items() for value in values)]
    for point in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            points.append(measure(point, Path(scratch), texts))
        print(f"{len(points)} of {len(sizes)}", end="\r", file=sys.stderr, flush=True)
    factors = fit(points)
    libraries = statistics.median(point["bytes"] - point["estimate"] for point in points)
    print(f"CPU, {os.cpu_count()} cores; two layers, a vocabulary of 4,096, micro-batches of at most {MICRO_BATCH}\n")
    print("| " + " | ".join(BASE) + " | parameters | s per step | model | MiB per process | estimate |")
    print("|---" * (len(BASE) + 5) + "|")
    for point in points:
        seconds = sum(factor * term for factor, term in zip(factors, terms(point), strict=True))
        cells = [f"**{point[name]}**" if point[name] != BASE[name] else str(point[name]) for name in BASE]
        memory = [f"{value / 2**20:.0f}" for value in (point["bytes"], point["estimate"] + libraries)]
        cells += [f"{point['parameters'] / 1e6:.1f} M", f"{point['seconds']:.2f}", f"{seconds:.2f}", *memory]
        print("| " + " | ".join(cells) + " |")
    base = terms(points[0])
    each = ", ".join(f"{name} {factor * term:.3f} s" for name, factor, term in zip(TERMS, factors, base, strict=True))
    print(f"\nthe model at the first point: {each}\nwhat the libraries take: {libraries / 2**20:.0f} MiB per process")


# ---------------------------------------------------------------------------------------------------------
# A plan for GPUs
# ---------------------------------------------------------------------------------------------------------


def plan() -> None:
    request = read_request(REFERENCE)
    completions = request.prompts_per_step * request.num_generations
    length = request.max_completion_length
    print(f"{REFERENCE}: {completions} completions of {length} tokens a step, prompts of {PROMPT}; GiB a GPU\n")
    print("| Qwen2.5 | GPUs | ZeRO-2 (one GPU: none) | ZeRO-3 | ZeRO-3, vLLM elsewhere | least seconds a step |")
    print("|---" * 6 + "|")
    for name in ("0.5b", "1.5b", "3b", *LARGER):
        config = step.make_config({**step.SHAPES, **LARGER}[name])
        size = memory.size_of(config, request)
        for gpus in (1, 8, 64):
            micro = min(request.per_device_train_batch_size, completions // gpus)
            cells = []
            for topology, vllm in (("zero2" if gpus > 1 else "none", False), ("zero3", False), ("zero3", True)):
                asked = argparse.Namespace(**{**vars(request), "per_device_train_batch_size": micro, "use_vllm": vllm})
                peak = memory.estimate(size, config, asked, topology, gpus, PROMPT, completions // (micro * gpus))[
                    "peak"
                ]
                cells.append(f"{peak / memory.GIB:.0f}" + (" ✗" if peak > 0.95 * 80e9 else ""))
            least = limits.of_step(
                config, size.total, torch.bfloat16.itemsize, completions // gpus, request.num_generations, PROMPT,
                length, length, **H100,
            )  # fmt: skip
            print(f"| {name} | {gpus} | {' | '.join(cells)} | {sum(least.values()):.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="store_true", help="the plan for GPUs; trains nothing")
    plan() if parser.parse_args().plan else grow()
