"""Every check that can refuse a run before its weights are loaded, in order, and the plan that they fill in.

Each check lives in the file of its subject. Together they take a second or two and need no GPU.
"""

import os
import statistics
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME, TrainerState

from r1zero import arguments, batch, data, memory, model, processes, reward_funcs, run_directory, tracking
from r1zero.plan import Plan


def check(request, recipe: dict, rewards: dict) -> Plan:
    """Check a request and plan its run. If the plan has `errors`, the request cannot run as it is.

    Args:
        request: every field of the parser's dataclasses, see `recipe.RecipeParser.read`.
        recipe: the same request resolved, see `recipe.RecipeParser.resolve`.
        rewards: reward functions by name, `rewards.REWARDS`.
    """
    plan = Plan(num_processes=request.num_processes or int(os.environ.get("WORLD_SIZE", "1")))
    size = prompt = has_directory = None
    with plan.check("request"):
        arguments.check(request)
    with plan.check("rewards"):
        plan.reward_funcs = reward_funcs.check(request, rewards)
    with plan.check("accelerate config"):
        processes.check(request.accelerate_config, plan)
    with plan.check("vllm"):
        processes.check_vllm(request)
    with plan.check("batch"):
        plan.gradient_accumulation_steps = batch.check(request, plan.num_processes)
    if request.output_dir:
        with plan.check("directory"):
            run_directory.check(request, recipe, plan)
            has_directory = True
        start = f"resumed from {Path(plan.checkpoint).name}" if plan.checkpoint else "from the start"
        start = start if plan.finished_steps is None else f"finished ({plan.finished_steps} steps)"
        plan.row("run", f"{request.output_dir}, {start}")
    if name := request.model_name_or_path:
        with plan.check("model"):
            plan.config, plan.tokenizer, plan.end_token_ids = model.inspect(
                name, request.prompt_style, request.model_revision, request.trust_remote_code, request.prefetch
            )
            size = memory.size_of(plan.config, request)
            plan.checkpoint_bytes, _ = memory.checkpoint_bytes(size)
            trained = f", {_count(size.trained)} of them trained" if size.trained < size.total else ""
            parameters = f"{_count(size.total)} parameters{trained}"
            plan.row("model", f"{name}: {parameters}, computes in {model.compute_dtype(request)}")
        if plan.config:
            with plan.check("precision"):
                model.check_precision(request, plan)
    # On each node the first process prepares the data, and the others read its cache later: see rl_grpo.py.
    if request.dataset_name and os.environ.get("LOCAL_RANK", "0") == "0":
        with plan.check("data"):
            plan.train_dataset, plan.eval_dataset = data.prepare(request)
            held_out = len(plan.eval_dataset or [])
            plan.row("data", f"{request.dataset_name}: {len(plan.train_dataset)} rows to train on, {held_out} held out")
    if plan.gradient_accumulation_steps:
        plan.row("batch", batch.describe(request, plan))
    if plan.gradient_accumulation_steps and plan.train_dataset:
        steps, epoch = batch.steps(request, plan)
        plan.row("steps", f"{steps}; an epoch is {epoch:.0f}")
        plan.row("time", _time_left(request, plan, steps))
    if plan.tokenizer and plan.train_dataset:
        with plan.check("prompts"):
            prompt = memory.check_prompts(request, plan)
        if plan.reward_funcs:
            with plan.check("reward values"):
                reward_funcs.check_values(request, plan)
    if size and prompt and plan.gradient_accumulation_steps and has_directory:
        with plan.check("memory and disk"):
            memory.check_room(request, plan, size, prompt)
    plan.row("tracker", tracking.describe(request.report_to, request.output_dir))
    return plan


def _time_left(request, plan: Plan, steps: int) -> str:
    """The time for the rest of a run that is resumed, by its pace so far."""
    state = Path(request.output_dir or "", TRAINER_STATE_NAME)
    history = TrainerState.load_from_json(str(state)).log_history if plan.checkpoint and state.is_file() else []
    seconds = [entry["step_time"] for entry in history if "reward" in entry and "step_time" in entry]
    if not seconds:
        return "not known before the first steps"
    left = steps - TrainerState.load_from_json(str(Path(plan.checkpoint, TRAINER_STATE_NAME))).global_step
    pace = statistics.median(seconds)
    return f"{pace * left / 3600:.1f} hours for {left} steps, at this run's {pace:.1f} s per step so far"


def _count(number: int) -> str:
    large = f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
    return f"{number:,}" if number < 1e5 else large
