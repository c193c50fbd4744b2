"""Batch arithmetic: prompts × generations = micro-batch × processes × accumulation steps."""

import math

from r1zero.recipe import RequestError


def check(request, processes: int) -> int:
    """The number of gradient accumulation steps.

    With `prompts_per_step` it follows from the equation above, so one recipe is the same optimisation on any number of
    processes. Without it TRL's own fields decide, and TRL's rule is checked: completions that are generated together
    must be complete groups. A RequestError names the nearest values that divide.
    """
    prompts, generations = request.prompts_per_step, request.num_generations
    size, accumulation = request.per_device_train_batch_size, request.gradient_accumulation_steps
    if generations < 2:
        raise RequestError(f"num_generations {generations}: GRPO compares at least 2 completions of a prompt")
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "prompts_per_step"):
        if (value := getattr(request, key)) is not None and value < 1:
            raise RequestError(f"{key} {value} is too small: at least 1")
    micro_batch = size * processes
    split = f"per_device_train_batch_size {size} × {processes} process{'es' * (processes > 1)}"
    if prompts is not None:
        completions = prompts * generations
        if completions % micro_batch:
            fix = f"nearest prompts_per_step {_around(prompts, micro_batch // math.gcd(micro_batch, generations))}"
            fitting = [one for one in range(1, completions + 1) if completions % (one * processes) == 0]
            if nearest := [*[one for one in fitting if one < size][-1:], *[one for one in fitting if one > size][:1]]:
                fix = f"nearest per_device_train_batch_size {' or '.join(map(str, nearest))}, or {fix}"
            raise RequestError(
                f"{prompts} prompts × {generations} generations = {completions} completions per step do not divide "
                f"into micro-batches of {split} = {micro_batch}: {fix}"
            )
        if accumulation not in (1, completions // micro_batch):
            problem = f"gradient_accumulation_steps {accumulation} contradicts prompts_per_step {prompts}"
            raise RequestError(f"{problem}, from which it follows ({completions // micro_batch}): give one of them")
        accumulation = completions // micro_batch

    together = request.generation_batch_size or micro_batch * (request.steps_per_generation or accumulation)
    if together % generations:
        step = generations // math.gcd(generations, together // size)
        raise RequestError(
            f"{together} completions generated together ({split} × {together // micro_batch}) are not complete groups "
            f"of num_generations {generations}: nearest per_device_train_batch_size {_around(size, step)}; "
            "or set prompts_per_step"
        )
    if request.eval_strategy == "no":
        return accumulation
    if request.validation_size == 0:
        fix = "set validation_size, which holds them out of the train split"
        raise RequestError(f"eval_strategy {request.eval_strategy} needs rows to evaluate on: {fix}")
    size, generations = request.per_device_eval_batch_size, request.num_generations_eval or generations
    if size * processes % generations:
        step = generations // math.gcd(generations, processes)
        raise RequestError(
            f"an evaluation batch of {size} × {processes} = {size * processes} completions is not complete groups of "
            f"{generations} generations: nearest per_device_eval_batch_size {_around(size, step)}; or set "
            "num_generations_eval"
        )
    return accumulation


def describe(request, plan) -> str:
    """The batch product written out, for the plan."""
    size, count = request.per_device_train_batch_size, plan.num_processes
    completions, generations = size * count * plan.gradient_accumulation_steps, request.num_generations
    return (
        f"{completions // generations} prompts × {generations} generations = {completions} completions per step = "
        f"{size} × {count} process{'es' * (count > 1)} × {plan.gradient_accumulation_steps} accumulation steps"
    )


def steps(request, plan) -> tuple[int, float]:
    """Optimizer steps of the run, and of one epoch over the plan's train set."""
    completions = request.per_device_train_batch_size * plan.num_processes * plan.gradient_accumulation_steps
    epoch = len(plan.train_dataset) / max(1, completions // request.num_generations)
    return (request.max_steps if request.max_steps > 0 else math.ceil(request.num_train_epochs * epoch)), epoch


def _around(value: int, step: int) -> str:
    """The multiples of `step` next to `value`."""
    below = value // step * step
    return " or ".join(str(multiple) for multiple in (below, below + step) if multiple > 0)
