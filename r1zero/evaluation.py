"""Evaluate models on GSM8K, with the prompts and answer readers of training: generate, score, summarise, compare."""

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import get_args

import numpy
import pandas
import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, set_seed
from transformers.utils import CONFIG_NAME, cached_file

from r1zero import checkpoints, intervals, rollouts
from r1zero.answers import is_formatted, read_answer, read_last_number, read_reference
from r1zero.data import PromptStyle, to_prompt


@dataclass
class Settings:
    """How to evaluate, and eval.py's options for it. `evaluation.json` is reused only if all of them are equal."""

    dataset_name: str = field(default="openai/gsm8k", metadata={"help": "a folder or a name on the hub"})
    dataset_config: str | None = field(default="main", metadata={"help": "configuration of a dataset on the hub"})
    prompt_style: str = field(default="chat", metadata={"choices": get_args(PromptStyle), "help": "as in training"})
    max_completion_length: int = field(default=384, metadata={"type": int, "help": "in tokens"})
    split: str = field(default="test", metadata={"help": "of the dataset"})
    limit: int | None = field(default=None, metadata={"type": int, "help": "evaluate only the first LIMIT items"})
    num_samples: int = field(default=1, metadata={"type": int, "help": "completions per item"})
    temperature: float = field(default=0.0, metadata={"type": float, "help": "of sampling; 0 is greedy"})
    batch_size: int = field(default=64, metadata={"type": int, "help": "completions per batch"})
    seed: int = field(default=0, metadata={"type": int, "help": "of sampling"})
    use_vllm: bool = field(default=False, metadata={"action": "store_true", "help": "use vLLM, in one process"})


def base_of_adapter(name: str) -> str | None:
    """The base model of an adapter's folder; None if `name` is a full model."""
    adapter = Path(name, "adapter_config.json")
    return json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else None


def tokenize(tokenizer, question: str, style: str) -> list[int]:
    """The token ids of a prompt, as TRL's `GRPOTrainer` makes them."""
    if isinstance(prompt := to_prompt(question, style), str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def load_generator(name: str, tokenizer, end_token_ids: list[int], settings: Settings):
    """Load a model. Returns a function from prompts to `num_samples` completions of each in turn, all as token ids."""
    if settings.use_vllm:
        from vllm import LLM, SamplingParams

        engine = LLM(model=name, seed=settings.seed)
        parameters = SamplingParams(
            n=settings.num_samples, temperature=settings.temperature, max_tokens=settings.max_completion_length,
            stop_token_ids=end_token_ids, seed=settings.seed,
        )  # fmt: skip
        return lambda prompts: [
            list(completion.token_ids)
            for output in engine.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
            for completion in output.outputs
        ]
    device = PartialState().device
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True).to(device).eval()
    config = GenerationConfig(
        do_sample=settings.temperature > 0, temperature=settings.temperature or None,
        top_k=0 if settings.temperature else None, num_return_sequences=settings.num_samples,
        max_new_tokens=settings.max_completion_length, eos_token_id=end_token_ids, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.generation_config = config  # or else its own fills the gaps, and some contain a repetition penalty
    return lambda prompts: rollouts.generate(model, tokenizer, prompts, config)


def score(completion: str, reference: Decimal) -> dict:
    """The reference answer, the strict answer, and whether strict answer, lenient answer and format are right."""
    answer = read_answer(completion)
    return {
        "gold": str(reference), "answer": None if answer is None else str(answer), "correct": answer == reference,
        "lenient": read_last_number(completion) == reference, "formatted": is_formatted(completion),
    }  # fmt: skip


def evaluate(name: str, items, settings: Settings, tokenizer, end_token_ids: list[int]) -> dict:
    """Evaluate a model on a dataset with `question` and `answer`, or continue that, or read it if it is finished.

    Each process calls this and generates some batches. A batch's padding and random numbers can change completions, so
    batches, and the files' bytes, are the same on any number of processes and after a restart. Files go to the model's
    folder, or to `outputs/evaluation`. Returns `evaluation.json`'s content and `tokens_per_second` (None if all read).
    """
    state, samples, speed = PartialState(), settings.num_samples, None
    folder = Path(name) if Path(name).is_dir() else Path("outputs", "evaluation", name.replace("/", "--"))
    contents = sha256("\n".join(map(str, [*items["question"], *items["answer"]])).encode()).hexdigest()
    key = sha256(json.dumps([asdict(settings), identify(name), contents]).encode()).hexdigest()[:16]
    result_file = folder / "evaluation.json"
    if result_file.is_file() and (result := json.loads(result_file.read_text())).get("key") == key:
        return {**result, "tokens_per_second": None}
    prompts = [tokenize(tokenizer, question, settings.prompt_style) for question in items["question"]]
    references = [read_reference(answer) for answer in items["answer"]]
    longest_first = sorted(range(len(items)), key=lambda item: -len(prompts[item]))
    pairs = list(product(longest_first, range(samples)))  # (item, sample)
    size = samples * max(1, settings.batch_size // samples)
    batches = [(seed, pairs[start : start + size]) for seed, start in enumerate(range(0, len(pairs), size))]
    mine = batches[state.process_index :: state.num_processes]
    folder.mkdir(parents=True, exist_ok=True)
    finished = read_parts(folder, key).keys()
    if todo := [(seed, batch) for seed, batch in mine if not finished >= set(batch)]:
        generate = load_generator(name, tokenizer, end_token_ids, settings)
        total, left = (sum(len(batch) for _, batch in part) for part in (mine, todo))
        # In a log file: a line every half minute in place of a bar that redraws itself.
        lines = {"bar_format": "{desc}: {n}/{total} [{elapsed}<{remaining}]\n", "mininterval": 30, "miniters": 1}
        bar = tqdm(
            desc=name if state.num_processes == 1 else f"{name}, process 1 of {state.num_processes}", total=total,
            initial=total - left, unit=" completions", dynamic_ncols=True, disable=not state.is_main_process,
            **({} if sys.stderr.isatty() else lines),
        )  # fmt: skip
        tokens, started = 0, time.perf_counter()
        with bar, open(folder / f"evaluation.{key}.part-{state.process_index}", "a") as file:
            for seed, batch in todo:
                set_seed(settings.seed * 1_000_003 + seed)
                completions = generate([prompts[item] for item, _ in batch[::samples]])
                for (item, sample), ids in zip(batch, completions, strict=True):
                    completion = tokenizer.decode(ids, skip_special_tokens=True)
                    row = {"item": item, "sample": sample, **score(completion, references[item])}
                    row |= {"tokens": len(ids), "truncated": ids[-1] not in end_token_ids, "completion": completion}
                    tokens += len(ids)
                    # The line break comes first, so a line that an earlier process left unfinished is lost alone.
                    print("\n" + json.dumps(row, ensure_ascii=False), end="", file=file, flush=True)
                bar.update(len(batch))
        speed = tokens * state.num_processes / (time.perf_counter() - started)
    state.wait_for_everyone()
    rows = read_parts(folder, key)
    result = {"model": name, "key": key, "settings": asdict(settings), **summarise(list(rows.values()), samples)}
    state.wait_for_everyone()  # until each process has read the part files, which are deleted now
    if state.is_main_process:
        lines = [json.dumps(rows[index], ensure_ascii=False) + "\n" for index in sorted(rows)]
        checkpoints.write(folder / "evaluation.jsonl", "".join(lines))
        checkpoints.write(result_file, json.dumps(result, indent=2) + "\n")
        for part in folder.glob("evaluation.*.part-*"):
            part.unlink()
    return {**result, "tokens_per_second": speed}


def identify(name: str) -> list[str]:
    """What decides that two models are the same: the SHA-256 of the weights in a folder, or the commit on the hub."""
    if not Path(name).is_dir():
        return [Path(cached_file(name, CONFIG_NAME)).parent.name]
    hashes = [sha256(numpy.memmap(file, mode="r")).hexdigest() for file in sorted(Path(name).glob("*.safetensors"))]
    return hashes + (identify(base) if (base := base_of_adapter(name)) else [])


def read_parts(folder: Path, key: str) -> dict[tuple[int, int], dict]:
    """The rows so far by (item, sample), without lines that were left unfinished."""
    rows = {}
    parts = sorted(folder.glob(f"evaluation.{key}.part-*"))
    for line in "".join(part.read_text("utf-8", errors="replace") for part in parts).split("\n"):
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            rows[row["item"], row["sample"]] = row
    return rows


def summarise(rows: list[dict], num_samples: int) -> dict:
    """Counts, shares and 95 % intervals of the rows of one model.

    Returns `items`, `completions`, `mean_tokens`, `correct` (correct samples of each item), and `value`, `low`, `high`,
    `count` of each of `accuracy` (strict), `lenient`, `formatted`, `truncated`; with several samples also `pass_at_k`
    and `majority`. The interval is Wilson's if an item counts 0 or 1, else that of the items' means.
    """
    table = pandas.DataFrame(rows).sort_values(["item", "sample"])
    items = table.groupby("item")

    def share(counts: pandas.Series, of: int) -> dict:
        count = int(counts.sum())
        low, high = intervals.wilson(count, len(counts)) if of == 1 else intervals.of_mean((counts / of).tolist())
        return {"value": count / (len(counts) * of), "low": low, "high": high, "count": count}

    sums = items[["correct", "lenient", "formatted", "truncated"]].sum().rename(columns={"correct": "accuracy"})
    result = {"items": len(items), "completions": len(rows)} | {name: share(sums[name], num_samples) for name in sums}
    result["mean_tokens"] = table["tokens"].mean().item()
    if num_samples > 1:
        result["pass_at_k"] = share(sums["accuracy"] > 0, 1)
        # Samples without an answer do not vote; 4 and 4.0 are one vote if right. In a tie the first answer wins.
        votes = table["gold"].where(table["correct"], table["answer"]).dropna().groupby(table["item"])
        winners = votes.agg(lambda answers: answers.value_counts(sort=False).idxmax())
        result["majority"] = share(items["gold"].first().eq(winners), 1)
    return {**result, "correct": sums["accuracy"].tolist()}


def compare(first: dict, second: dict) -> str:
    """One line on the difference between two models on the same items, each given as `evaluate` returns it."""
    differences = (numpy.subtract(second["correct"], first["correct"]) / first["settings"]["num_samples"]).tolist()
    method, interval = "paired by item", intervals.of_mean(differences)
    if first["settings"]["num_samples"] == 1:
        lost, gained = differences.count(-1), differences.count(1)
        test = intervals.mcnemar(lost, gained, len(differences))
        counts = f"{gained} items correct only in the second, {lost} only in the first"
        method, interval = f"exact McNemar test p = {test['p']:.2g}: {counts}", (test["low"], test["high"])
    difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(sum(differences) / len(differences), *interval)
    accuracies = " → ".join(f"{result['accuracy']['value']:.3f}" for result in (first, second))
    return f"{first['model']} → {second['model']}: accuracy {accuracies}, difference {difference} ({method})"
