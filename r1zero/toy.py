"""Make the toy: word problems in GSM8K's schema, and a tiny Qwen2 base model that solves some of them.

    python -m r1zero.toy                                # outputs/toy-base, once, under 2 minutes on two CPU cores
    python -m r1zero.toy --output_dir DIR --seed 1      # another one

It is the default on machines without a GPU and needs no network: everything comes from a seed. The problems have one or
two steps. The model (0.36 M parameters) is trained with TRL's `SFTTrainer` on traces of mixed quality: right, wrong,
wrong and then corrected, without tags. So it can do everything that GRPO rewards, but not reliably, and GRPO has
something to select.

OUTPUT_DIR then holds the model with its tokenizer, `data/train.jsonl` and `data/test.jsonl`. No question is in two of
the three sets (test, train, and the problems of the base model's traces).
"""

import argparse
import json
import os
import random
import shutil
import sys
from pathlib import Path

TOY_BASE = "outputs/toy-base"  # named in configs/toy.yaml
TRAIN_ROWS, TEST_ROWS = 2000, 400
BATCH_SIZE = 32  # traces per supervised step

NAMES = "Ann Ben Cleo Dan Eva Finn Gus Ida Jon Kim Leo Mia Ned Ola Pam Ray Sue Tom Uma Zoe".split()
ITEMS = "apples books cards coins eggs hats keys kites lemons marbles pens plums rings shells stamps toys".split()
GAINS = ("buys {n} more", "finds {n} more", "gets {n} from {other}")
LOSSES = ("gives {n} to {other}", "loses {n}", "sells {n}")
LARGEST = 9  # single digits: a model of this size learns these sums reliably


def make_problem(rng: random.Random) -> dict:
    """One word problem with one or two steps.

    Returns:
        `{"question": str, "answer": str, "steps": [(a, "+" or "-", b), …]}`; the first two are GSM8K's columns,
        and every number in the problem is between 0 and `LARGEST`.
    """
    name, other = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    have = rng.randint(2, 6)
    steps, events, worked = [], [], []
    for _ in range(rng.choice((1, 2))):
        operator = "+" if have == 0 else "-" if have == LARGEST else rng.choice("+-")
        amount = rng.randint(1, min(5, LARGEST - have if operator == "+" else have))
        events.append(rng.choice(GAINS if operator == "+" else LOSSES).format(n=amount, other=other))
        left = have + amount if operator == "+" else have - amount
        steps.append((have, operator, amount))
        worked.append(f"{name} has {have}{operator}{amount}=<<{have}{operator}{amount}={left}>>{left} {item}.")
        have = left
    question = f"{name} has {steps[0][0]} {item}. {name} {' and then '.join(events)}. How many {item} does {name} have?"
    return {"question": question, "answer": "\n".join([*worked, f"#### {have}"]), "steps": steps}


def make_problems(rng: random.Random, count: int, seen: set[str]) -> list[dict]:
    """`count` problems with questions not in `seen`, which is updated."""
    problems = []
    while len(problems) < count:
        if (problem := make_problem(rng))["question"] not in seen:
            seen.add(problem["question"])
            problems.append(problem)
    return problems


DOUBTS = ("Wait, let me check.", "Wait, let me think.", "But wait, let me check.")
SURE = ("Let me check.", "Perhaps check.")


def make_trace(rng: random.Random, steps: list[tuple[int, str, int]]) -> str:
    """A completion for a problem with these steps: right, wrong, corrected, checked, or without tags."""
    kind = rng.choices(("right", "wrong", "corrected", "checked", "untagged"), weights=(20, 42, 18, 8, 12))[0]
    have, lines = steps[0][0], []
    slip_at = rng.randrange(len(steps))
    for index, (_, operator, amount) in enumerate(steps):
        right = have + amount if operator == "+" else have - amount
        slipped = rng.choice([near for near in range(right - 2, right + 3) if near >= 0 and near != right])
        slips = index == slip_at and kind in ("wrong", "corrected", "untagged")
        lines.append(f"{have}{operator}{amount}={slipped if slips else right}.")
        if index == slip_at and kind in ("corrected", "checked"):
            said = rng.choice(DOUBTS if kind == "corrected" else SURE)
            lines.append(f"{said} {have}{operator}{amount}={right}.")
        have = slipped if slips and kind != "corrected" else right
    reasoning = " ".join(lines)
    tagged = f"<think>{reasoning}</think>\n<answer>{have}</answer>"
    return f"{reasoning} The answer is {have}." if kind == "untagged" else tagged


# Qwen2.5's special tokens and a reduced chat template, so that the toy takes the same code paths.
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: list[str]):
    """A byte-pair tokenizer of 512 tokens.

    For models of type qwen2, transformers 5 rebuilds a `Qwen2Tokenizer` on loading and ignores any other pre-tokenizer
    in the saved file, so it is trained as one.
    """
    from transformers import Qwen2Tokenizer

    settings = {"vocab_size": 512, "new_special_tokens": SPECIAL_TOKENS, "show_progress": False}
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, **settings)
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", "<|fim_pad|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer, seed: int, hidden_size: int = 128, context: int = 256):
    """A randomly initialised Qwen2 with two layers; 0.36 M parameters at this width.

    Args:
        tokenizer: for vocabulary and special tokens.
        seed: for the weights.
        hidden_size: a multiple of 8.
        context: tokens of prompt and completion together.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def teach(model, tokenizer, problems: list[dict], rng: random.Random, steps: int, seed: int, scratch: Path) -> None:
    """Supervised training of the base model on one trace per problem, with loss on the trace only."""
    from datasets import Dataset, disable_progress_bars  # here and below: launch.py imports this file at every start
    from transformers import PrinterCallback
    from transformers.utils.logging import disable_progress_bar
    from trl import SFTConfig, SFTTrainer

    from r1zero.data import to_prompt

    disable_progress_bars()
    disable_progress_bar()
    traces = [
        {
            "prompt": to_prompt(problem["question"], "question"),
            "completion": [{"role": "assistant", "content": make_trace(rng, problem["steps"])}],
        }
        for problem in problems
    ]
    settings = SFTConfig(
        output_dir=str(scratch), max_steps=steps, per_device_train_batch_size=BATCH_SIZE, learning_rate=3e-3,
        lr_scheduler_type="cosine", warmup_steps=20, max_length=None, activation_checkpointing=False, bf16=False,
        use_cpu=True, logging_strategy="no", disable_tqdm=not sys.stderr.isatty(), save_strategy="no",
        report_to="none", seed=seed,
    )  # fmt: skip
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(traces), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(TOY_BASE), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="for problems, traces and model; default: %(default)s")
    parser.add_argument("--steps", type=int, default=500, help="supervised steps; default: %(default)s")
    arguments = parser.parse_args()
    output_dir, seed = arguments.output_dir, arguments.seed
    if output_dir.exists():
        parser.error(f"{output_dir} exists: delete it to make it again, or give another --output_dir")

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which transformers imports, warns
    print(f"r1zero.toy: making {output_dir} (a minute or two, once)", flush=True)
    rng, seen = random.Random(seed), set()
    data = {"test": make_problems(rng, TEST_ROWS, seen), "train": make_problems(rng, TRAIN_ROWS, seen)}
    taught = make_problems(rng, arguments.steps * BATCH_SIZE, seen)
    # Made in a scratch folder and then renamed, so that an interruption leaves nothing incomplete.
    scratch = output_dir.with_name(f"{output_dir.name}.making-{os.getpid()}")
    (scratch / "data").mkdir(parents=True)
    try:
        for split, problems in data.items():
            lines = [json.dumps({key: row[key] for key in ("question", "answer")}) + "\n" for row in problems]
            (scratch / "data" / f"{split}.jsonl").write_text("".join(lines))
        chats = [f"user\n{row['question']}\nassistant\n{make_trace(rng, row['steps'])}" for row in taught[:4000]]
        tokenizer = make_tokenizer(chats)
        model = make_model(tokenizer, seed)
        teach(model, tokenizer, taught, rng, arguments.steps, seed, scratch / "sft")
        shutil.rmtree(scratch / "sft", ignore_errors=True)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.rename(output_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{output_dir}: a base model of {model.num_parameters():,} parameters, data/train.jsonl, data/test.jsonl")


if __name__ == "__main__":
    main()
