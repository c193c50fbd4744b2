"""Accuracy of one or more models on a split of GSM8K, with intervals: same prompt and same parser as in training.

    python evaluate.py outputs/toy --with_base                               # before and after, with the paired test
    python evaluate.py outputs/qwen2.5-1.5b-gsm8k --dataset_name openai/gsm8k
    python evaluate.py outputs/toy --num_samples 8 --temperature 1           # pass@1, pass@8, majority vote
    python evaluate.py outputs/toy --ask "Ann has 3 pens. Ann buys 4 more. How many pens does Ann have?"
    accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 4 evaluate.py MODEL

What is not said is taken from the first model that is a run of rl_grpo.py (its recipe.yaml). Beside each model:
`evaluation.json` (settings and results) and `evaluation.jsonl` (a line a completion). Stopped and started again, it
goes on; asked again for what is there, it reads it. Exit codes: 0 done, 2 the request was wrong.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import get_args

import torch
import yaml
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, set_seed
from transformers.utils import CONFIG_NAME, cached_file

import checkpoints
import gsm8k
import intervals
import preflight
import report
import shared_prompts
from recipe import RequestError
from rewards import highlight

# What a run's recipe says for its evaluation, and what holds where there is neither a recipe nor an argument.
FROM_RECIPE = {
    "dataset_name": "openai/gsm8k",
    "dataset_config": "main",
    "prompt_style": "chat",
    "max_completion_length": 384,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a run, a model's folder or a name on the hub")
    parser.add_argument(
        "--with_base", action="store_true", help="first of all the model that the first run was trained from"
    )
    parser.add_argument("--dataset_name", help="a folder or a name on the hub")
    parser.add_argument("--dataset_config", help="of a dataset on the hub")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument("--prompt_style", choices=get_args(gsm8k.PromptStyle))
    parser.add_argument("--max_completion_length", type=int, help="tokens")
    parser.add_argument("--limit", type=int, help="only so many items, the split's first")
    parser.add_argument("--num_samples", type=int, default=1, help="completions an item; default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, the default")
    parser.add_argument("--batch_size", type=int, default=64, help="completions at a time; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; default: %(default)s")
    parser.add_argument("--use_vllm", action="store_true", help="generate with vLLM, on one process")
    parser.add_argument("--ask", metavar="QUESTION", help="print the first model's answer to this question instead")
    return parser


def settle(options: argparse.Namespace) -> None:
    """Fill in from the first run's recipe what was not said, and check what was.

    Raises:
        RequestError: it cannot be evaluated like this.
    """
    files = (Path(model, "recipe.yaml") for model in options.models)
    file = next((file for file in files if file.is_file()), None)
    recipe = yaml.safe_load(file.read_text()) if file else {}
    if options.with_base:
        if not file:
            raise RequestError(f"--with_base: no recipe.yaml in {options.models[0]} says what it was trained from")
        options.models.insert(0, recipe["model_name_or_path"])
    for key, default in FROM_RECIPE.items():
        if getattr(options, key) is None:
            setattr(options, key, recipe.get(key, default))
    for key in ("num_samples", "batch_size", "max_completion_length", "limit"):
        if getattr(options, key) is not None and getattr(options, key) < 1:
            raise RequestError(f"--{key} {getattr(options, key)} is too small: at least 1")
    if options.temperature < 0:
        raise RequestError(f"--temperature {options.temperature} is below 0, which is greedy")
    if options.num_samples > 1 and options.temperature == 0:
        raise RequestError(f"{options.num_samples} greedy samples are all the same: give a --temperature, such as 1")
    if len({os.path.normpath(model) for model in options.models}) < len(options.models):
        raise RequestError(f"a model is named twice: {' '.join(options.models)}")


def base_of_adapter(name: str) -> str | None:
    """The model that an adapter belongs to; None of a full model."""
    adapter = Path(name) / "adapter_config.json"
    return json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else None


def check_model(name: str, options: argparse.Namespace):
    """A model's tokenizer and end tokens; of an adapter, those of the model that it belongs to."""
    base = base_of_adapter(name) or name
    _, tokenizer, end_token_ids = preflight.check_model(
        argparse.Namespace(
            model_name_or_path=base, model_revision="main", trust_remote_code=False, prefetch=False,
            prompt_style=options.prompt_style,
        )
    )  # fmt: skip
    return tokenizer, end_token_ids


# ---------------------------------------------------------------------------------------------------------
# Generation
# ---------------------------------------------------------------------------------------------------------


def tokenize(tokenizer, question: str, style: str) -> list[int]:
    """A prompt's token ids, as TRL's `GRPOTrainer` makes them."""
    prompt = gsm8k.to_prompt(question, style)
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def load_generator(name: str, tokenizer, end_token_ids: list[int], options: argparse.Namespace):
    """A function from prompts' token ids to as many times `num_samples` completions' token ids, ends included."""
    sampling = options.temperature > 0
    if options.use_vllm:
        from vllm import LLM, SamplingParams

        engine = LLM(model=name, seed=options.seed)
        parameters = SamplingParams(
            n=options.num_samples, temperature=options.temperature, max_tokens=options.max_completion_length,
            stop_token_ids=end_token_ids, seed=options.seed,
        )  # fmt: skip

        def generate(prompts: list[list[int]]) -> list[list[int]]:
            outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
            return [list(sample.token_ids) for output in outputs for sample in output.outputs]

        return generate

    device = PartialState().device
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True).to(device).eval()
    # Nothing of the model's own generation config but what is said here: some bring a repetition penalty.
    config = GenerationConfig(
        do_sample=sampling, temperature=options.temperature if sampling else None, top_k=0 if sampling else None,
        num_return_sequences=options.num_samples, max_new_tokens=options.max_completion_length,
        eos_token_id=end_token_ids, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.generation_config = config
    method = shared_prompts.sample if shared_prompts.can_share(model) else None

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
        with torch.inference_mode():
            output = model.generate(**padded, generation_config=config, custom_generate=method)
        completions = output[:, padded["input_ids"].shape[1] :].tolist()
        ends = set(end_token_ids)
        return [ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))] for ids in completions]

    return generate


def score(completion: str, gold: Decimal) -> dict:
    """What is counted of one completion."""
    strict, lenient = gsm8k.read_answer(completion), gsm8k.read_last_number(completion)
    return {
        "answer": None if strict is None else str(strict),
        "correct": strict == gold,
        "lenient": lenient == gold,
        "formatted": gsm8k.is_formatted(completion),
    }


def evaluate(name: str, items, options: argparse.Namespace, tokenizer, end_token_ids: list[int]) -> dict:
    """Evaluate one model, or go on where that was stopped, or read what is there.

    Batches are the same on any number of processes and at any restart, since a batch's padding and its random
    numbers may change a completion; each process takes every so-manieth.

    The files hold nothing of the clock or the machine: the same evaluation gives the same files.

    Returns:
        The content of its `evaluation.json`, with `tokens_per_second` beside it (None if nothing was generated).
    """
    state = PartialState()
    place = Path(name) if Path(name).is_dir() else Path("outputs", "evaluation", name.replace("/", "--"))
    settings = {
        key: getattr(options, key)
        for key in (*FROM_RECIPE, "split", "limit", "num_samples", "temperature", "batch_size", "seed", "use_vllm")
    }
    contents = hashlib.sha256("\n".join(map(str, [*items["question"], *items["answer"]])).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([settings, identify(name), contents]).encode()).hexdigest()[:16]
    done_file = place / "evaluation.json"
    if done_file.is_file() and (done := json.loads(done_file.read_text())).get("key") == key:
        return {**done, "tokens_per_second": None}

    prompts = [tokenize(tokenizer, question, options.prompt_style) for question in items["question"]]
    golds = [gsm8k.read_gold(answer) for answer in items["answer"]]
    longest_first = sorted(range(len(items)), key=lambda index: (-len(prompts[index]), index))
    size = max(1, options.batch_size // options.num_samples)
    batches = [longest_first[start : start + size] for start in range(0, len(items), size)]

    place.mkdir(parents=True, exist_ok=True)
    rows = read_parts(place, key)
    have = Counter(item for item, _ in rows)
    todo = [
        (number, batch)
        for number, batch in enumerate(batches)
        if number % state.num_processes == state.process_index
        and any(have[item] < options.num_samples for item in batch)
    ]
    tokens, started = 0, time.perf_counter()
    if todo:
        generate = load_generator(name, tokenizer, end_token_ids, options)
        total = sum(len(batch) for _, batch in todo) * options.num_samples
        there = f" ({len(rows)} are there)" if rows else ""
        share = f" on the first of {state.num_processes} processes" if state.num_processes > 1 else ""
        progress = Progress(f"{name}: {total} completions{share}{there}", total, state.is_main_process)
        started = time.perf_counter()
        with open(part_file(place, key, state.process_index), "a") as file:
            for number, batch in todo:
                set_seed(options.seed * 1_000_003 + number)
                completions = generate([prompts[item] for item in batch])
                for index, ids in enumerate(completions):
                    item = batch[index // options.num_samples]
                    completion = tokenizer.decode(ids, skip_special_tokens=True)
                    row = {
                        "item": item,
                        "sample": index % options.num_samples,
                        "gold": str(golds[item]),
                        **score(completion, golds[item]),
                        "tokens": len(ids),
                        "truncated": ids[-1] not in end_token_ids,
                        "completion": completion,
                    }
                    tokens += len(ids)
                    # The line's end comes first: what was cut off before it spoils nothing.
                    file.write("\n" + json.dumps(row, ensure_ascii=False))
                file.flush()
                progress.add(len(completions))
        progress.close()
    seconds = time.perf_counter() - started
    state.wait_for_everyone()
    rows = read_parts(place, key)
    result = {"model": name, "key": key, "settings": settings, **summarise(list(rows.values()), options.num_samples)}
    if state.is_main_process:
        lines = [json.dumps(rows[index], ensure_ascii=False) + "\n" for index in sorted(rows)]
        checkpoints.write(place / "evaluation.jsonl", "".join(lines))
        checkpoints.write(done_file, json.dumps(result, indent=2) + "\n")
    state.wait_for_everyone()
    if state.is_main_process:
        for part in place.glob("evaluation.*.part-*"):
            part.unlink()
    return {**result, "tokens_per_second": tokens * state.num_processes / seconds if tokens else None}


def identify(name: str) -> list[str]:
    """What a model is, wherever it lies and whenever it was written: its weights' SHA-256, or its commit on the hub."""
    if not Path(name).is_dir():
        return [Path(cached_file(name, CONFIG_NAME)).parent.name]
    hashes = []
    for path in sorted(Path(name).glob("*.safetensors")):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        hashes.append(digest.hexdigest())
    base = base_of_adapter(name)
    return hashes + (identify(base) if base else [])


def part_file(place: Path, key: str, process: int) -> Path:
    return place / f"evaluation.{key}.part-{process}"


def read_parts(place: Path, key: str) -> dict[tuple[int, int], dict]:
    """The rows so far by item and sample; a line that was cut off while it was written is left out."""
    rows = {}
    for part in sorted(place.glob(part_file(Path(), key, 0).name.removesuffix("0") + "*")):
        for line in part.read_text().split("\n"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[row["item"], row["sample"]] = row
    return rows


class Progress:
    """A bar with an estimate in a terminal; in a log file, a line each tenth."""

    def __init__(self, what: str, total: int, speak: bool):
        self.total, self.done, self.speak = total, 0, speak
        self.started = time.perf_counter()
        if speak:
            print(what, flush=True)
        self.bar = tqdm(total=total, unit="completion", dynamic_ncols=True, disable=not (speak and sys.stderr.isatty()))

    def add(self, count: int) -> None:
        tenth = self.done * 10 // self.total
        self.done += count
        self.bar.update(count)
        if self.speak and self.bar.disable and self.done * 10 // self.total > tenth:
            left = (time.perf_counter() - self.started) * (self.total / self.done - 1)
            print(f"  {self.done}/{self.total}, about {left:.0f} s left", flush=True)

    def close(self) -> None:
        self.bar.close()


# ---------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------


def summarise(rows: list[dict], num_samples: int) -> dict:
    """Counts, shares and intervals of one model's rows.

    Returns:
        `items`, `completions`, `correct` (a list: right samples by item), and for each share its `value` and 95 %
        interval: `accuracy` (strict; Wilson's for one sample an item, the normal one of the items' means for more),
        `lenient`, `formatted`, `truncated`; `mean_tokens`; with samples also `pass_at_k` and `majority`.
    """
    items: dict[int, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["item"], row["sample"])):
        items.setdefault(row["item"], []).append(row)

    def by_item(name: str) -> list[int]:
        return [sum(row[name] for row in samples) for samples in items.values()]

    def share(counts: list[int], of: int) -> dict:
        """The share of counts by item, each out of `of`."""
        if of == 1:
            low, high = intervals.wilson(sum(counts), len(counts))
        else:
            low, high = intervals.of_mean([count / of for count in counts])
        return {"value": sum(counts) / (len(counts) * of), "low": low, "high": high, "count": sum(counts)}

    result = {
        "items": len(items),
        "completions": len(rows),
        "accuracy": share(by_item("correct"), num_samples),
        "lenient": share(by_item("lenient"), num_samples),
        "formatted": share(by_item("formatted"), num_samples),
        "truncated": share(by_item("truncated"), num_samples),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
    }
    if num_samples > 1:
        result["pass_at_k"] = share([int(count > 0) for count in by_item("correct")], 1)
        result["majority"] = share([int(majority_is_right(samples)) for samples in items.values()], 1)
    result["correct"] = by_item("correct")
    return result


def majority_is_right(samples: list[dict]) -> bool:
    """Whether the most frequent answer is the gold; of equally frequent ones the first given counts."""
    answers = Counter(row["answer"] if not row["correct"] else row["gold"] for row in samples if row["answer"])
    return bool(answers) and answers.most_common(1)[0][0] == samples[0]["gold"]


def compare(first: dict, second: dict) -> str:
    """One line on the difference of two models on the same items."""
    if first["settings"]["num_samples"] == 1:
        only_first = sum(a > b for a, b in zip(first["correct"], second["correct"], strict=True))
        only_second = sum(a < b for a, b in zip(first["correct"], second["correct"], strict=True))
        test = intervals.mcnemar(only_first, only_second, first["items"])
        how = (
            f"exact McNemar test p = {test['p']:.2g}: {only_second} items only the latter, {only_first} only the former"
        )
    else:
        samples = first["settings"]["num_samples"]
        differences = [(b - a) / samples for a, b in zip(first["correct"], second["correct"], strict=True)]
        low, high = intervals.of_mean(differences)
        test = {"difference": math.fsum(differences) / len(differences), "low": low, "high": high}
        how = "paired by item"
    return (
        f"{first['model']} → {second['model']}: accuracy {first['accuracy']['value']:.3f} → "
        f"{second['accuracy']['value']:.3f}, difference {test['difference']:+.3f} [{test['low']:+.3f}, "
        f"{test['high']:+.3f}] ({how})"
    )


def say_results(results: list[dict]) -> None:
    """A table, a line a model, and the paired comparison of each with the first."""
    samples = results[0]["settings"]["num_samples"]
    columns = [("pass@1" if samples > 1 else "accuracy", "accuracy")]
    if samples > 1:
        columns += [(f"pass@{samples}", "pass_at_k"), ("majority", "majority")]
    columns += [("lenient", "lenient"), ("format", "formatted"), ("truncated", "truncated")]
    table = [["model", "items", *(title for title, _ in columns), "tokens", "tokens/s"]]
    for result in results:
        shares = [result[key] for _, key in columns]
        speed = result["tokens_per_second"]
        table.append(
            [
                result["model"],
                str(result["items"]),
                f"{shares[0]['value']:.3f} [{shares[0]['low']:.3f}, {shares[0]['high']:.3f}]",
                *(f"{share['value']:.3f}" for share in shares[1:]),
                f"{result['mean_tokens']:.0f}",
                "–" if speed is None else f"{speed:,.0f}",
            ]
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    print()
    for row in table:
        print("  ".join(f"{cell:{'<' if column == 0 else '>'}{widths[column]}}" for column, cell in enumerate(row)))
    for other in results[1:]:
        print(compare(results[0], other))


def colour(completion: str) -> str:
    """Tags and reflection phrases in colour, for a terminal."""
    colours = {"tag": "\033[36m", "phrase": "\033[1;33m"}
    return "".join(f"{colours[kind]}{piece}\033[0m" if kind else piece for piece, kind in highlight(completion))


def main(argv: list[str] | None = None) -> None:
    report.quieten()
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        settle(options)
        if options.use_vllm:
            preflight.check_vllm_version()
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise RequestError("--use_vllm: vLLM brings its own processes; start evaluate.py as one")
        checked = {model: check_model(model, options) for model in options.models}
        if options.ask is not None:
            model = options.models[0]
            tokenizer, ends = checked[model]
            PartialState(cpu=not torch.accelerator.is_available())
            set_seed(options.seed)
            ids = load_generator(model, tokenizer, ends, options)(
                [tokenize(tokenizer, options.ask, options.prompt_style)]
            )
            for completion in ids:
                answer = tokenizer.decode(completion, skip_special_tokens=True).strip()
                print(colour(answer) if sys.stdout.isatty() else answer)
            return
        try:
            items = gsm8k.load(options.dataset_name, options.dataset_config, options.split)
        except gsm8k.DatasetError as error:
            raise RequestError(str(error)) from error
    except RequestError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"evaluate.py: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if options.limit:
        items = items.select(range(min(options.limit, len(items))))

    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process:
        how = "greedy" if options.temperature == 0 else f"{options.num_samples} samples at {options.temperature}"
        print(
            f"{options.dataset_name}, {options.split}: {len(items)} items, prompt style {options.prompt_style}, {how}"
        )
    results = [evaluate(model, items, options, *checked[model]) for model in options.models]
    if state.is_main_process:
        say_results(results)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
