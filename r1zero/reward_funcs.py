"""Turn reward names into functions, and try them on real rows before training."""

import asyncio
import inspect
import math
import pkgutil
from collections.abc import Callable

import trl.rewards
from transformers import TrainerState

from r1zero.answers import read_reference
from r1zero.recipe import RequestError

# TRL's own rewards by name. Three are factories, here with their arguments by completion length in tokens; DAPO's soft
# punishment covers the last fifth of it (arXiv:2503.14476, section 3.4).
TRL_REWARDS = {
    **dict.fromkeys(("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")),
    "get_cosine_scaled_reward": lambda tokens: {"max_len": tokens},
    "get_repetition_penalty_reward": lambda tokens: {},
    "get_soft_overlong_punishment": lambda tokens: {"max_completion_len": tokens, "soft_punish_cache": tokens // 5},
}


def load(name: str, ours: dict[str, Callable], max_completion_length: int) -> Callable[..., list[float | None]]:
    """The reward function of a name: a key of `ours` (`rewards.REWARDS`) or of `TRL_REWARDS`, or an import path.

    `max_completion_length`, in tokens, is for TRL's rewards that depend on it. Raises `RequestError` for another name.
    """
    if name in ours:
        return ours[name]
    if name in TRL_REWARDS:
        reward, arguments = getattr(trl.rewards, name), TRL_REWARDS[name]
        return reward if arguments is None else reward(**arguments(max_completion_length))
    if "." not in name:
        raise RequestError(f"unknown reward {name!r}: choose from {', '.join([*ours, *TRL_REWARDS])} or an import path")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(f"reward {name} cannot be imported: {error}") from error


def check(request, ours: dict[str, Callable]) -> list[Callable]:
    """The reward functions that a request names, in its order."""
    names, weights = request.reward_funcs, request.reward_weights
    if not names:
        raise RequestError(f"reward_funcs is empty: choose from {', '.join(ours)}")
    if len(set(names)) < len(names):
        raise RequestError(f"reward_funcs names a reward twice: {' '.join(names)}; use reward_weights to weight it")
    if weights is not None and (len(weights) != len(names) or not all(map(math.isfinite, weights))):
        counts = f"{len(weights)} reward_weights for {len(names)} reward_funcs"
        raise RequestError(f"{counts}: give one finite number per reward, not {weights}")
    return [load(name, ours, request.max_completion_length) for name in names]


def check_values(request, plan) -> None:
    """Call every reward on a few real rows, as TRL will, with a right answer, a wrong one and an empty completion.

    Warns if their weighted sum does not pay the right answer most. Raises `RequestError` if a reward raises, or does
    not return a list of finite numbers or None, one per completion.
    """
    columns = plan.train_dataset.rename_column("prompt", "prompts")[:8]
    right = [*map(read_reference, columns["solution"])]
    # As long as the right answer, so that only its value differs.
    wrong = [value + (1 if len(str(value + 1)) == len(str(value)) else -1) for value in right]
    write = "<think>I add it up.</think>\n<answer>{}</answer>".format
    kinds = [*map(write, right)], [*map(write, wrong)], [""] * len(right)
    for sums in zip(*(_weighted_sums(request, plan, columns, texts) for texts in kinds), strict=True):
        if sums[0] <= max(sums[1:]):
            pays = "{:g} for a right answer, {:g} for a wrong one and {:g} for none".format(*sums)
            fix = "accuracy will not improve: add accuracy, or change reward_weights"
            return plan.warn("reward values", f"the rewards {' '.join(request.reward_funcs)} pay {pays}, so {fix}")


def _weighted_sums(request, plan, columns: dict[str, list], texts: list[str]) -> list[float]:
    """The weighted sum of all rewards for each completion text."""
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    arguments = columns | {
        "completions": texts if isinstance(columns["prompts"][0], str) else messages,
        "completion_ids": plan.tokenizer(texts)["input_ids"],
        "trainer_state": TrainerState(),
        **dict.fromkeys(("log_extra", "log_metric"), lambda *_: None),
    }
    weights, totals = request.reward_weights or [1.0] * len(plan.reward_funcs), [0.0] * len(texts)
    for name, function, weight in zip(request.reward_funcs, plan.reward_funcs, weights, strict=True):
        try:
            values = function(**arguments)
            values = asyncio.run(values) if inspect.isawaitable(values) else values
        except Exception as error:  # a user's function may raise anything
            reason = f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"
            raise RequestError(f"reward {name} raises {reason} on {texts[0]!r}") from error
        try:
            is_valid = len(values) == len(texts) and all(value is None or math.isfinite(value) for value in values)
        except TypeError:  # no list, or not of numbers
            is_valid = False
        if not is_valid:
            contract = "a reward returns a list of finite numbers (or None), one per completion"
            raise RequestError(f"reward {name} returns {str(values)[:100]} for {len(texts)} completions: {contract}")
        totals = [total + weight * (value or 0.0) for total, value in zip(totals, values, strict=True)]
    return totals
