"""Accuracy of models on a split of GSM8K, with 95 % intervals, with the prompt and the parser of training.

    python eval.py outputs/toy --with_base --num_samples 8 --temperature 1   # docs/evaluation.md has more commands

Dataset, prompt style and completion length come from the recipe.yaml of the first run, unless you give them. Each model
gets `evaluation.json` (settings and results) and `evaluation.jsonl` (one line per completion). The same command again
continues a stopped evaluation, and only reads a finished one. Exit codes: 0 done, 2 the request was wrong.
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

import pandas
import yaml
from accelerate import PartialState
from rich.console import Console
from rich.text import Text
from transformers import set_seed

from r1zero import console, data, model, processes
from r1zero.evaluation import Settings, base_of_adapter, compare, evaluate, load_generator, tokenize
from r1zero.recipe import HelpFormatter, RequestError
from rewards import PHRASES


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run directory, model folder or name on the hub")
    parser.add_argument("--with_base", action="store_true", help="evaluate the base model of the first run as well")
    parser.add_argument("--ask", metavar="QUESTION", help="only print the first model's answer to this question")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", default=field.default, **field.metadata)
    return parser


def read_request(argv: list[str] | None) -> tuple[list[str], Settings, str | None]:
    """Models, settings and question (or None) by the command line over the first run's recipe; raises RequestError."""
    parser = make_parser()
    models = parser.parse_args(argv).models
    file = next((file for name in models if (file := Path(name, "recipe.yaml")).is_file()), None)
    recipe = yaml.safe_load(file.read_text()) if file else {}
    keys = ("dataset_name", "dataset_config", "prompt_style", "max_completion_length")
    parser.set_defaults(**{key: recipe[key] for key in keys if key in recipe})
    options = parser.parse_args(argv)
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    if options.with_base:
        if not file:
            raise RequestError(f"--with_base: {models[0]} has no recipe.yaml, which names the base model of a run")
        models = [recipe["model_name_or_path"], *models]
    minima = {"num_samples": 1, "batch_size": 1, "max_completion_length": 1, "limit": 1, "temperature": 0}
    for key, minimum in minima.items():
        if (value := getattr(settings, key)) is not None and value < minimum:
            raise RequestError(f"--{key} {value} is too small: give at least {minimum}")
    if settings.num_samples > 1 and settings.temperature == 0:
        raise RequestError(f"{settings.num_samples} greedy samples are all the same: give a --temperature, such as 1")
    if len({os.path.normpath(name) for name in models}) < len(models):
        raise RequestError(f"a model is named twice: {' '.join(models)}")
    if settings.use_vllm:
        processes.check_vllm_version()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RequestError("--use_vllm: vLLM starts its own processes; use `python eval.py`, not accelerate launch")
    return models, settings, options.ask


def make_table(results: list[dict]) -> str:
    """The results as text, a line per model."""
    samples = results[0]["settings"]["num_samples"]
    columns = {
        "items": "items", "accuracy": "pass@1" if samples > 1 else "accuracy", "pass_at_k.value": f"pass@{samples}",
        "majority.value": "majority", "lenient.value": "lenient", "formatted.value": "format",
        "truncated.value": "truncated", "mean_tokens": "tokens", "tokens_per_second": "tokens/s",
    }  # fmt: skip
    table = pandas.json_normalize(results).set_index("model").astype({"tokens_per_second": float})
    table["accuracy"] = ["{value:.3f} [{low:.3f}, {high:.3f}]".format(**result["accuracy"]) for result in results]
    table = table.filter(columns).rename(columns=columns).rename_axis(index=None, columns="model")
    formats = {"tokens": "{:.0f}".format, "tokens/s": "{:,.0f}".format}
    return table.to_string(float_format="{:.3f}".format, formatters=formats, na_rep="–")


def print_answer(completion: str, where: Console) -> None:
    """Print a completion, with tags and reflection phrases in colour if it goes to a terminal."""
    styles = {"tag": "cyan", "phrase": "bold yellow", None: ""}
    where.print(Text.assemble(*((part, styles[kind]) for part, kind in PHRASES.highlight(completion))), soft_wrap=True)


def main(argv: list[str] | None = None) -> None:
    console.quieten()
    try:
        models, settings, question = read_request(argv)
        inspected = {name: model.inspect(base_of_adapter(name) or name, settings.prompt_style) for name in models}
        if question is None:
            items = data.load(settings.dataset_name, settings.dataset_config, settings.split)
            items = items.select(range(len(items))[: settings.limit])
    except RequestError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"eval.py: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    state = PartialState(cpu=not processes.has_gpu())
    if question is not None:
        _, tokenizer, end_token_ids = inspected[models[0]]
        set_seed(settings.seed)
        generate = load_generator(models[0], tokenizer, end_token_ids, settings)
        for ids in generate([tokenize(tokenizer, question, settings.prompt_style)]):
            print_answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), Console())
        return
    say = state.on_main_process(print)
    sampling = f"{settings.num_samples} samples at {settings.temperature}" if settings.temperature else "greedy"
    source = f"{settings.dataset_name}, {settings.split}"
    say(f"{source}: {len(items)} items, prompt style {settings.prompt_style}, {sampling}", flush=True)
    results = [evaluate(name, items, settings, *inspected[name][1:]) for name in models]
    say(f"\n{make_table(results)}", *(compare(results[0], other) for other in results[1:]), sep="\n")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
