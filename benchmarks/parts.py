"""What each part of `rollouts.py` saves: one process's half of a toy step, by transformers and TRL, and by ours.

    python -m r1zero.toy; python benchmarks/parts.py        # one core, half a minute

Generation: 8 prompts × 16 completions by the base model. Scoring: forward and backward pass of 32 of them, which is a
micro-batch. The sides take turns; medians.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl.trainer.utils import add_fused_lm_head

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

from r1zero import data, rollouts  # noqa: E402
from r1zero.arguments import make_parser  # noqa: E402
from r1zero.model import end_completions  # noqa: E402

PROMPTS, GENERATIONS, MICRO_BATCH, ROUNDS = 8, 16, 32, 9


def report(title: str, sides: dict) -> None:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, call in sides.items():
            torch.manual_seed(number)
            started = time.perf_counter()
            call()
            if number:  # the first warms up
                times[name].append(time.perf_counter() - started)
    print(title)
    for name, values in times.items():
        middle, low, high = (1000 * each for each in (statistics.median(values), min(values), max(values)))
        print(f"  {name:40} {middle:6.0f} ms  [{low:.0f}–{high:.0f}]")


def main() -> None:
    torch.set_num_threads(1)
    request = make_parser().read(["--config", "configs/toy.yaml"])
    model = AutoModelForCausalLM.from_pretrained(request.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(request.model_name_or_path, padding_side="left")
    ends = end_completions(tokenizer, request.prompt_style)
    rows, _ = data.to_training_set(data.load(request.dataset_name), request.prompt_style)
    batch = tokenizer.apply_chat_template(
        rows["prompt"][:PROMPTS], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids, mask = (batch[name].repeat_interleave(GENERATIONS, dim=0) for name in ("input_ids", "attention_mask"))
    config = GenerationConfig(
        max_new_tokens=request.max_completion_length, do_sample=True, top_k=0, eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    width = ids.size(1)

    def generate(method=None) -> torch.Tensor:
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=method)

    def generate_to_the_longest() -> None:
        rollouts.FINISHED_SHARE = 1.0
        generate(rollouts.sample)
        rollouts.FINISHED_SHARE = leave

    leave = rollouts.FINISHED_SHARE
    report(
        f"generation, {PROMPTS} × {GENERATIONS} completions",
        {
            "transformers": generate,
            "prompts read once, drawn by one number": generate_to_the_longest,
            "and finished completions leave": lambda: generate(rollouts.sample),
        },
    )

    sequences = generate()
    written = (sequences != tokenizer.pad_token_id).long()
    by_length = written[:, width:].sum(dim=1).argsort(descending=True)[:MICRO_BATCH]
    sequences, written = sequences[by_length], torch.cat([mask, written[:, width:]], dim=1)[by_length]
    labels = sequences.masked_fill(written == 0, -100)
    labels[:, :width] = -100
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))

    def score(scorer) -> None:
        model.zero_grad()
        scored = scorer(input_ids=sequences, attention_mask=written, labels=labels, fused_lm_head=True)
        scored.log_probs.sum().backward()

    sharing = rollouts.Scoring(model, width)
    report(
        f"forward and backward pass, {MICRO_BATCH} rows",
        {"every prompt read": lambda: score(model), "prompts read once": lambda: score(sharing)},
    )


if __name__ == "__main__":
    main()
