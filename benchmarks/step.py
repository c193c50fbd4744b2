"""Time a training step against `trl grpo` on the same model, data, batch and seed, in turn.

    python -m r1zero.toy; python benchmarks/step.py                        # two CPU cores, about six minutes
    python benchmarks/step.py --config configs/qwen2.5-1.5b-gsm8k.yaml --shape 1.5b --dataset_name FOLDER    # GPUs

Both sides report TRL's own `step_time`; the first steps, which warm up, are left out. The table gives medians over all
steps of all rounds, the median of the rounds' ratios, how our step divides, and the limit that `limits.py` puts on it:
memory traffic and arithmetic at the rates of this machine. `--shape` makes a Qwen2.5 of that size with random weights,
and draws no end token, on either side: the longest a step can be.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # before this folder, which has a rewards.py too
sys.path.append(str(Path(__file__).parent))

import limits  # noqa: E402

from r1zero import data, memory, toy  # noqa: E402
from r1zero.arguments import R1ZeroArguments, make_parser  # noqa: E402
from r1zero.model import compute_dtype, end_completions  # noqa: E402

WARM_UP = 3  # steps
SHAPES = {  # of Qwen2.5, from its configurations
    "0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864},
    "1.5b": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "intermediate_size": 8960},
    "3b": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "intermediate_size": 11008},
    "tiny": {  # to try the script itself
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 4096,
    },
}


def make_config(shape: dict) -> Qwen2Config:
    """Qwen2.5's configuration, of a shape."""
    return Qwen2Config(
        **{
            "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True,
            "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, **shape,
        }
    )  # fmt: skip


def make_shape(shape: dict, texts: list[str], folder: Path) -> Path:
    """A model of a shape with random weights, and a tokenizer."""
    tokenizer = toy.make_tokenizer(texts)
    config = make_config(shape)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def declare_ends(model: str, style: str, folder: Path) -> Path:
    """A copy of a local model whose generation config declares all its end tokens: TRL knows no others.

    Ours finds them; without, `trl grpo` would let a base model that ends with its template's `<|im_end|>` write on to
    the last token, and be slower for that alone.
    """
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("data"))
    config = GenerationConfig.from_pretrained(folder)
    declared = [config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id
    config.eos_token_id = end_completions(AutoTokenizer.from_pretrained(folder), style, declared)
    config.save_pretrained(folder)
    return folder


def trl_command(request, data: Path, steps: int, run: Path, processes: int) -> list[str]:
    """The recipe as `trl grpo` takes it: our four fields said in its own."""
    ours = set(R1ZeroArguments.__dataclass_fields__)
    recipe = {key: value for key, value in make_parser().resolve(request).items() if key not in ours}
    micro_batch = request.per_device_train_batch_size * processes
    recipe |= {
        "dataset_name": str(data),
        "gradient_accumulation_steps": request.prompts_per_step * request.num_generations // micro_batch,
        "reward_funcs": [f"rewards.{name}" for name in request.reward_funcs],
        "max_steps": steps, "output_dir": str(run), "report_to": "none", "save_strategy": "no", "eval_strategy": "no",
        "eval_on_start": False, "log_completions": False, "logging_steps": 1, "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    several = ["--num_processes", str(processes)] if processes > 1 else []
    if several and not torch.cuda.is_available():
        several += ["--accelerate_config", "configs/accelerate/cpu.yaml"]
    return ["trl", "grpo", "--config", str(file), *several]


def our_command(arguments, request, steps: int, run: Path, processes: int) -> list[str]:
    topology = arguments.accelerate_config
    command = ["accelerate", "launch", "--config_file", topology, "--num_processes", str(processes)]
    places = ["--model_name_or_path", request.model_name_or_path, "--dataset_name", request.dataset_name]
    return [
        *command, "--main_process_port", "0", "benchmarks/timed.py", "--config", arguments.config, *places,
        "--max_steps", str(steps), "--output_dir", str(run), "--report_to", "none", "--save_strategy", "no",
        "--eval_strategy", "no", "--validation_size", "0", "--log_completions", "false", *arguments.ours,
    ]  # fmt: skip


def run_once(command: list[str], log: Path, threads: int | None) -> str:
    variables = {**os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    result = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log.write_text(result.stdout)
    if result.returncode:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-3000:]}")
    return result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/toy.yaml", help="recipe; default: %(default)s")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this size in place of the recipe's model")
    parser.add_argument("--dataset_name", help="a folder in place of the recipe's data")
    parser.add_argument("--steps", type=int, default=13, help="a run; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--processes", type=int, help="of ours; default: one a GPU, or two")
    parser.add_argument("--trl_processes", type=int, help="of `trl grpo`; default: one a GPU, or one, as it starts")
    parser.add_argument("--accelerate_config", help="default: cpu, single_gpu or zero2, as rl_grpo.sh takes")
    parser.add_argument("--only_ours", action="store_true", help="leave `trl grpo` out")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="further arguments of rl_grpo.py; last")
    arguments = parser.parse_args()

    gpus = torch.cuda.device_count()
    processes, trl_processes = arguments.processes or gpus or 2, arguments.trl_processes or gpus or 1
    if not arguments.accelerate_config:
        name = "cpu" if not gpus else "zero2" if processes > 1 else "single_gpu"
        arguments.accelerate_config = f"configs/accelerate/{name}.yaml"
    threads = None if gpus else max(1, (os.cpu_count() or 1) // processes)
    request = make_parser().read(["--config", arguments.config])
    request.dataset_name = arguments.dataset_name or request.dataset_name
    if arguments.shape:
        request.generation_kwargs = {"min_new_tokens": request.max_completion_length}
        arguments.ours += ["--generation_kwargs", json.dumps(request.generation_kwargs)]
    rows = data.load(request.dataset_name, request.dataset_config)
    prompts, _ = data.to_training_set(rows, request.prompt_style)

    times: dict[str, list[list[float]]] = {"ours": [], "trl grpo": []}
    timings, lengths, their_lengths = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if arguments.shape:
            folder = make_shape(
                SHAPES[arguments.shape], [row["question"] for row in rows.select(range(500))], scratch / "shape"
            )
            request.model_name_or_path = str(folder)
        if os.path.isdir(request.model_name_or_path):
            ends = declare_ends(request.model_name_or_path, request.prompt_style, scratch / "model")
            request.model_name_or_path = str(ends)
        (scratch / "data").mkdir()
        prompts.to_json(scratch / "data" / "train.jsonl")
        config = AutoConfig.from_pretrained(request.model_name_or_path)
        for number in range(arguments.rounds):
            run = scratch / f"ours-{number}"
            run_once(our_command(arguments, request, arguments.steps, run, processes), scratch / "log", threads)
            history = json.loads((run / "trainer_state.json").read_text())["log_history"]
            history = [entry for entry in history if "step_time" in entry][WARM_UP:]
            times["ours"].append([entry["step_time"] for entry in history])
            lengths += [(entry["completions/mean_length"], entry["completions/max_length"]) for entry in history]
            timings.append(json.loads((run / "timing.json").read_text()))
            shutil.rmtree(run)
            if not arguments.only_ours:
                run = scratch / f"trl-{number}"
                command = trl_command(request, scratch / "data", arguments.steps, run, trl_processes)
                said = run_once(command, scratch / "log", None)
                found = [float(value) for value in re.findall(r"'step_time': '?([0-9.e-]+)", said)]
                times["trl grpo"].append(found[WARM_UP:])
                found = re.findall(r"'completions/mean_length': '?([0-9.e-]+)", said)
                their_lengths += [float(value) for value in found][WARM_UP:]
                shutil.rmtree(run, ignore_errors=True)
            print(
                *(f"{who} {statistics.median(rounds[-1]):.2f} s" for who, rounds in times.items() if rounds), flush=True
            )

    device = torch.cuda.get_device_name() if gpus else f"CPU, {os.cpu_count()} cores"
    shape = f" as {arguments.shape}" if arguments.shape else ""
    print(f"\n{arguments.config}{shape}, {device}; processes: ours {processes}, trl grpo {trl_processes}")
    for who, rounds in times.items():
        if rounds:
            every = sorted(value for one in rounds for value in one)
            print(f"  {who:10} {statistics.median(every):7.2f} s per step  [{every[0]:.2f}–{every[-1]:.2f}]")
    if times["trl grpo"]:
        ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(*times.values(), strict=True)]
        means = [statistics.fmean(length for length, _ in lengths), statistics.fmean(their_lengths)]
        print(f"  completions of {means[0]:.1f} tokens on average, of trl grpo {means[1]:.1f}")
        print(f"  trl grpo ÷ ours: {statistics.median(ratios):.2f}  [{min(ratios):.2f}–{max(ratios):.2f}]")
    steps = [step for timing in timings for step in timing["steps"][WARM_UP:]]
    whole = statistics.median(step["step"] for step in steps)
    print(f"  ours, of {whole:.2f} s:")
    parts = {name for step in steps for name in step} - {"step"}
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in parts}
    if "forward" in medians:  # its log-probabilities are those with gradient
        medians["log-probabilities"] = max(0.0, medians.get("log-probabilities", 0.0) - medians["forward"])
    for name, value in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"    {name:18} {value:6.3f} s  {value / whole:4.0%}")
    print(f"    {'other':18} {whole - sum(medians.values()):6.3f} s")
    tokens = statistics.median(timing["tokens"] for timing in timings)
    peak = max(timing["peak_bytes"] for timing in timings)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[compute_dtype(request)]
    completions = request.prompts_per_step * request.num_generations
    here = completions // processes if gpus else completions  # a card has its own rates, cores share theirs
    mean, longest = (statistics.median(values) for values in zip(*lengths, strict=True))
    limit = limits.of_step(
        config, memory.size_of(config, request).total, dtype.itemsize, here,
        request.num_generations, tokens / completions - mean, mean, longest, limits.matrix_rate(dtype),
        limits.bandwidth(),
    )  # fmt: skip
    each = ", ".join(f"{name} {value:.3f} s" for name, value in limit.items())
    print(f"  limit {sum(limit.values()):.3f} s ({each}): a step takes {whole / sum(limit.values()):.1f} times that")
    print(f"  {tokens / whole:,.0f} tokens per second, prompts included; peak {peak / 2**30:.2f} GiB per process")


if __name__ == "__main__":
    main()
