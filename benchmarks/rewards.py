"""Time the four rewards on a step's completions, beside TRL's two, as texts grow, and on hostile text.

    python benchmarks/rewards.py

576 completions (32 prompts × 18) of 2,000 characters, one core. Needs math-verify for TRL's reward. The two
take turns in every round; the table gives medians over the rounds and the median of the rounds' ratios.
"""

import os
import random
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # this folder's rewards.py is this file

import rewards  # noqa: E402
from r1zero import answers  # noqa: E402

PROMPTS, GENERATIONS, CHARACTERS, ROUNDS = 32, 18, 2000, 9
SIZES = (1_000, 10_000, 100_000, 1_000_000)
FOUR = ("accuracy", "format", "reflection", "length")

SENTENCES = (
    "She starts with {a} boxes and buys {b} more at the store on Monday, so she has {a}+{b}={c} boxes.",
    "Then half of the {c} boxes would be {d}, which leaves ${d} for the rest of the week.",
    "Wait, let me check that again, because the question asks for the total.",
    "The price of each item is ${b}.50 and there are {a} of them in the basket.",
    "Maybe it is possible to count the boxes in another way: {c} - {b} = {a}.",
    "After that, her brother gives her {d} marbles but the box can only hold {a} of them.",
)


def write(rng: random.Random, characters: int, answer: str) -> str:
    """A completion of so many characters."""
    tail = f"</think>\n<answer>{answer}</answer>"
    parts, length = ["<think>"], 7
    while length < characters - len(tail):
        a, b, d = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 99)
        parts.append(rng.choice(SENTENCES).format(a=a, b=b, c=a + b, d=d) + "\n")
        length += len(parts[-1])
    return "".join(parts)[: characters - len(tail)] + tail


def step_completions() -> tuple[list[str], list[str]]:
    """`(completions, solutions)` of one step, prompt by prompt; each right, wrong or without answer."""
    rng = random.Random(0)
    completions, solutions = [], []
    for _ in range(PROMPTS):
        gold = rng.randint(1, 5000)
        for _ in range(GENERATIONS):
            answer = rng.choice((f"{gold}", f"${gold:,}", f"{gold} dollars", f"{gold + rng.randint(1, 9)}", "no idea"))
            completions.append(write(rng, CHARACTERS, answer))
            solutions.append(f"She has {gold} in all.\n#### {gold:,}")
    return completions, solutions


def hostile_completions(size: int = 200_000) -> dict[str, str]:
    """Texts of about `size` characters that a model, or a person, might write to harm a reward."""
    return {
        "open tags": "<think>" * (size // 7),
        "answer tags": "<answer>" * (size // 8),
        "closing tags": "</think>" * (size // 8),
        "angle brackets": "<" * size,
        "angle brackets in a block": "<think>" + "<" * size + "</think><answer>1</answer>",
        "digits": "9" * size,
        "digits and commas": "<answer>" + "1," * (size // 2) + "</answer>",
        "numbers in a block": "<answer>" + "7 " * (size // 2) + "</answer>",
        "as many numbers as are read": "<answer>" + "7 " * (answers.MAX_ANSWER_CHARACTERS // 2 - 1) + "</answer>",
        "boxes": "<answer>" + "\\boxed{" * (answers.MAX_ANSWER_CHARACTERS // 7) + "</answer>",
        "annotations": "<answer>" + "<<" * (answers.MAX_ANSWER_CHARACTERS // 2 - 1) + "</answer>",
        "spaces": " " * size,
        "spaces between blocks": "<think>x</think>" + " " * size + "<answer>1</answer>",
        "NULs": "\0" * size,
        "other digits": "٤" * size,
        "other digits in a block": "<answer>" + "٤" * (answers.MAX_ANSWER_CHARACTERS - 1) + "</answer>",
        "lone surrogates": "\ud800" * size,
        "a phrase": "let me check " * (size // 13),
        "half a phrase": "let " * (size // 4),
        "a phrase far apart": "let" + " " * size + "me",
        "letters that grow in lower case": "İ" * size,
    }


def milliseconds(call) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    from trl.rewards import accuracy_reward, think_format_reward

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    completions, solutions = step_completions()
    messages = [[{"role": "assistant", "content": completion}] for completion in completions]

    times = {name: [] for name in (*FOUR, "TRL accuracy_reward", "TRL think_format_reward")}
    for _ in range(ROUNDS):
        answers.read_number.cache_clear()
        for name in FOUR:
            reward = rewards.REWARDS[name]
            times[name].append(milliseconds(lambda reward=reward: reward(messages, solution=solutions)))
        times["TRL accuracy_reward"].append(milliseconds(lambda: accuracy_reward(messages, solution=solutions)))
        times["TRL think_format_reward"].append(milliseconds(lambda: think_format_reward(messages)))
    together = [sum(round_) for round_ in zip(*(times[name] for name in FOUR), strict=True)]

    print(f"{len(messages)} completions of {CHARACTERS:,} characters, one core, median of {ROUNDS} rounds [min–max]\n")
    for name, values in (*times.items(), ("all four", together)):
        print(f"  {name:24} {statistics.median(values):9.2f} ms   [{min(values):.2f}–{max(values):.2f}]")
    for theirs, label, ours in (
        ("TRL accuracy_reward", "accuracy", times["accuracy"]),
        ("TRL accuracy_reward", "all four", together),
        ("TRL think_format_reward", "format", times["format"]),
    ):
        ratios = [their / our for their, our in zip(times[theirs], ours, strict=True)]
        print(f"  {theirs} ÷ {label}: {statistics.median(ratios):.3g}")

    print("\none completion, ms, median of 9, as it grows")
    print(f"  {'characters':>12}" + "".join(f"{name:>12}" for name in FOUR))
    for size in SIZES:
        completion = write(random.Random(0), size, "42")
        medians = [
            statistics.median(
                milliseconds(lambda r=rewards.REWARDS[name], c=completion: r([c], solution=["#### 42"]))
                for _ in range(ROUNDS)
            )
            for name in FOUR
        ]
        print(f"  {size:>12,}" + "".join(f"{median:12.3f}" for median in medians))

    print("\nhostile completions of 200,000 characters, the slowest reward, median of 5")
    for label, completion in hostile_completions().items():
        medians = {
            name: statistics.median(
                milliseconds(lambda r=reward, c=completion: r([c], solution=["#### 1"])) for _ in range(5)
            )
            for name, reward in rewards.REWARDS.items()
        }
        slowest = max(medians, key=medians.get)
        print(f"  {label:32} {medians[slowest]:7.2f} ms   {slowest}")


if __name__ == "__main__":
    main()
