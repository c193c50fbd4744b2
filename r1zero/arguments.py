"""The arguments of `rl_grpo.py`: TRL's, and the few that are ours."""

from dataclasses import dataclass, field

from trl import GRPOConfig, ModelConfig, ScriptArguments

from r1zero.data import PromptStyle
from r1zero.recipe import RecipeParser, RequestError

# TRL's arguments that do not work here, and why.
UNSUPPORTED = {
    "dataset_streaming": "every reference answer is checked before training",
    "enable_jit_checkpoint": "SIGTERM and SIGUSR1 save a checkpoint anyway, with all ranks at the same step, which "
    "transformers' version does not ensure",
    "cache_implementation": "generation has its own cache, and --use_vllm true is the fast way on a GPU",
}


@dataclass
class R1ZeroArguments:
    """The fields that TRL does not have."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format", "reflection", "length"],
        metadata={"help": "rewards to sum: names in rewards.py, TRL's own, or import paths such as my_rewards.brevity"},
    )
    prompt_style: PromptStyle = field(
        default="chat", metadata={"help": "R1-Zero instructions as chat, the same as plain text, or only the question"}
    )
    prompts_per_step: int | None = field(
        default=None, metadata={"help": "prompts per optimizer step over all processes; accumulation follows from it"}
    )
    validation_size: int = field(default=0, metadata={"help": "rows of the train split held out for validation"})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "start a new run; the old output_dir is moved aside, not deleted"}
    )
    preflight: bool = field(default=False, metadata={"help": "check the request, print the plan, stop"})
    num_processes: int | None = field(default=None, metadata={"help": "with --preflight: plan for so many processes"})
    accelerate_config: str | None = field(
        default=None, metadata={"help": "with --preflight: plan for this accelerate config, see configs/accelerate"}
    )
    prefetch: bool = field(default=False, metadata={"help": "download model and data into the cache, check, stop"})


def make_parser(description: str | None = None) -> RecipeParser:
    kinds = (R1ZeroArguments, ScriptArguments, GRPOConfig, ModelConfig)
    return RecipeParser(kinds, usage="python rl_grpo.py --config RECIPE.yaml [--key value …]", description=description)


def check(request) -> None:
    """Refuse missing fields and combinations that do not work, with a RequestError."""
    for key in ("model_name_or_path", "dataset_name", "output_dir"):
        if not getattr(request, key):
            raise RequestError(f"no {key}: set it in a recipe (--config configs/toy.yaml) or give --{key}")
    if not request.preflight and (request.num_processes is not None or request.accelerate_config is not None):
        raise RequestError(
            "--num_processes and --accelerate_config go with --preflight; for a training give them to "
            "`accelerate launch`, or set NUM_PROCESSES and ACCELERATE_CONFIG for rl_grpo.sh"
        )
    for key, reason in UNSUPPORTED.items():
        if getattr(request, key):
            raise RequestError(f"{key}: leave it out; {reason}")
