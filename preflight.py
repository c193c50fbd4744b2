"""Every check that can fail a run before its weights are loaded.

`check` reads a request and what it names (rewards, batch, run directory, tokenizer, data) and returns the plan
of the run, or raises `RequestError` with one line that says what to change. It takes seconds and no GPU.
"""

import argparse
import importlib.metadata
import json
import math
import os
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

import gsm8k
import rewards
from recipe import RequestError, those_in

# What may differ between two starts of one run: how long it goes on, how its batch is cut into micro-batches,
# and what it reports and keeps. Anything else makes it another run, which belongs in another directory.
MAY_CHANGE = {
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "report_to",
    "run_name",
    "disable_tqdm",
    "push_to_hub",
    "use_cpu",
    "activation_checkpointing",
}
MAY_CHANGE_PREFIXES = ("logging_", "log_", "save_", "eval_", "hub_", "dataloader_", "num_completions_", "ddp_")

TOY_BASE = "outputs/toy-base"  # what toy.py makes, and configs/toy.yaml names
VLLM = "0.30.0"  # the one that asks for the torch and transformers pinned in requirements.txt

# What a model's folder on the hub holds beside weights in other formats.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
OFFLINE_MEND = "`bash rl_grpo.sh --prefetch` where there is a network downloads it, HF_HUB_OFFLINE=0 looks for it now"


@dataclass
class Plan:
    """What `check` found out, so that nothing is read twice.

    Attributes:
        reward_funcs: the functions, in the recipe's order.
        world_size: processes that the batch is split over.
        gradient_accumulation_steps: micro-batches an optimizer step, of `per_device_train_batch_size`
            completions on each process.
        tokenizer: the model's, with the pad token that training uses.
        end_token_ids: the tokens of which each ends a completion.
        train_dataset, eval_dataset: columns `prompt` and `solution`; the second is None without validation.
        checkpoint: the one to resume from, or None.
        finished_steps: how many steps the run in the directory did, if it is finished; else None.
        run_to_move: whether what is in the directory is to be moved aside first.
    """

    reward_funcs: list[Callable]
    world_size: int
    gradient_accumulation_steps: int
    tokenizer: PreTrainedTokenizerBase
    end_token_ids: list[int]
    train_dataset: object
    eval_dataset: object
    checkpoint: str | None
    finished_steps: int | None
    run_to_move: bool


def check(request: argparse.Namespace, recipe: dict) -> Plan:
    """Check a request, cheapest checks first.

    Args:
        request: every field of the parser's dataclasses, see `recipe.RecipeParser.read`.
        recipe: the same request resolved, see `recipe.RecipeParser.resolve`.

    Raises:
        RequestError: it cannot be run as it is.
    """
    for key in ("model_name_or_path", "dataset_name", "output_dir"):
        if not getattr(request, key):
            raise RequestError(f"no {key}: name it in a recipe (--config configs/toy.yaml) or give --{key}")
    if request.dataset_streaming:
        raise RequestError("dataset_streaming is not supported: GSM8K is read whole, and each gold is checked")
    if not request.preflight and (request.num_processes is not None or request.accelerate_config is not None):
        raise RequestError(
            "--num_processes and --accelerate_config go with --preflight; a training has those of `accelerate launch`, "
            "or of NUM_PROCESSES and ACCELERATE_CONFIG for rl_grpo.sh"
        )
    if request.enable_jit_checkpoint:
        raise RequestError(
            "enable_jit_checkpoint: leave it out; on SIGTERM and SIGUSR1 a checkpoint is saved anyway, all ranks at "
            "one step, which transformers' own does not see to"
        )

    reward_funcs = check_rewards(request)
    world_size = request.num_processes or int(os.environ.get("WORLD_SIZE", "1"))
    check_topology(request.accelerate_config, world_size)
    check_vllm(request)
    accumulation = check_batch(request, world_size)
    checkpoint, finished_steps, run_to_move = check_run_directory(request, recipe)
    tokenizer, end_token_ids = check_model(request)
    train_dataset, eval_dataset = check_data(request)
    return Plan(
        reward_funcs=reward_funcs,
        world_size=world_size,
        gradient_accumulation_steps=accumulation,
        tokenizer=tokenizer,
        end_token_ids=end_token_ids,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        checkpoint=checkpoint,
        finished_steps=finished_steps,
        run_to_move=run_to_move,
    )


# ---------------------------------------------------------------------------------------------------------
# Rewards
# ---------------------------------------------------------------------------------------------------------


def check_rewards(request) -> list[Callable]:
    """The reward functions that the request names."""
    names = request.reward_funcs
    if len(set(names)) < len(names):
        raise RequestError(f"reward_funcs names a reward twice: {' '.join(names)}; use reward_weights to weigh it")
    weights = request.reward_weights
    if weights is not None and len(weights) != len(names):
        raise RequestError(f"{len(weights)} reward_weights for {len(names)} reward_funcs: give one weight a reward")
    try:
        return [rewards.load(name, request.max_completion_length) for name in names]
    except (ValueError, ImportError) as error:
        raise RequestError(str(error)) from error


# ---------------------------------------------------------------------------------------------------------
# Topology and vLLM
# ---------------------------------------------------------------------------------------------------------


def check_topology(path: str | None, world_size: int) -> None:
    """Refuse a topology that accelerate would run as something else without a word.

    Args:
        path: the topology's file; None under a launcher, which has read it.
        world_size: the processes that it is to run on.
    """
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if path is not None:
        try:
            kind = load_config_from_file(path).distributed_type
        except FileNotFoundError:
            raise RequestError(f"there is no topology {path}; there are {those_in('configs/accelerate')}") from None
        except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise RequestError(f"topology {path} cannot be read: {' '.join(str(error).split())}") from error
        if kind == "NO" and world_size > 1:
            raise RequestError(f"topology {path} is of one process, not {world_size}: take ddp.yaml or zero2.yaml")
        fsdp = kind == "FSDP"
    if fsdp and not torch.accelerator.is_available():
        raise RequestError(
            "FSDP needs GPUs: without one accelerate runs plain DDP in its place and does not say so; "
            "take cpu.yaml, or zero3.yaml, which splits the model on CPUs too"
        )


def check_vllm(request) -> None:
    """That vLLM, if it is to generate, is here in the one version that fits, and that its server answers."""
    if not request.use_vllm:
        return
    check_vllm_version()
    if request.preflight or request.prefetch:
        return  # which may be on a machine other than the one that trains
    if not torch.cuda.is_available():
        raise RequestError("use_vllm: vLLM needs a GPU, and there is none here")
    if request.vllm_mode == "server" and os.environ.get("RANK", "0") == "0":
        url = request.vllm_server_base_url or f"http://{request.vllm_server_host}:{request.vllm_server_port}"
        wait_for_server(url, request.vllm_server_timeout, f"trl vllm-serve --model {request.model_name_or_path}")


def check_vllm_version() -> None:
    """That vLLM is installed, in the version that fits."""
    install = f"pip install vllm=={VLLM}"
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise RequestError(f"use_vllm: vLLM is not installed: {install}") from None
    if version.split("+")[0] != VLLM:
        raise RequestError(f"use_vllm: vLLM {version} does not fit the pinned torch and transformers: {install}")


def wait_for_server(url: str, seconds: float, command: str) -> None:
    """Return when the vLLM server at `url` answers; refuse when it has not after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise RequestError(
                    f"use_vllm: no vLLM server answers at {url} ({error}): start one with `{command}`, "
                    "and name its machine with --vllm_server_host"
                ) from error
        time.sleep(2)


# ---------------------------------------------------------------------------------------------------------
# Batch arithmetic
# ---------------------------------------------------------------------------------------------------------


def check_batch(request, world_size: int) -> int:
    """The number of gradient accumulation steps.

    With `prompts_per_step` it follows: prompts × generations = micro-batch × processes × accumulation steps,
    so that one recipe is the same optimisation on any number of processes. Without, TRL's own fields decide,
    and TRL's own rule is checked: the completions generated together must be whole groups.
    """
    generations, per_device = request.num_generations, request.per_device_train_batch_size
    for key in ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(request, key) < (2 if key == "num_generations" else 1):
            raise RequestError(
                f"{key} {getattr(request, key)} is too small: "
                + ("GRPO compares at least 2 completions a prompt" if key == "num_generations" else "at least 1")
            )
    micro_batch = per_device * world_size
    split = f"per_device_train_batch_size {per_device} × {world_size} process{'es' * (world_size > 1)}"

    if request.prompts_per_step is not None:
        if request.prompts_per_step < 1:
            raise RequestError(f"prompts_per_step {request.prompts_per_step} is too small: at least 1")
        completions = request.prompts_per_step * generations
        if completions % micro_batch:
            raise RequestError(
                f"{request.prompts_per_step} prompts × {generations} generations = {completions} completions a step "
                f"do not divide into micro-batches of {split} = {micro_batch}: "
                + _nearest_batches(request.prompts_per_step, generations, per_device, world_size)
            )
        accumulation = completions // micro_batch
        if request.gradient_accumulation_steps not in (1, accumulation):
            raise RequestError(
                f"gradient_accumulation_steps {request.gradient_accumulation_steps} contradicts prompts_per_step "
                f"{request.prompts_per_step}, from which it follows ({accumulation}): give only one of them"
            )
    else:
        accumulation = request.gradient_accumulation_steps

    together = request.generation_batch_size or micro_batch * (request.steps_per_generation or accumulation)
    if together % generations:
        step = generations // math.gcd(generations, together // per_device)
        raise RequestError(
            f"{together} completions generated together ({split} × {together // micro_batch}) are no whole groups of "
            f"num_generations {generations}: nearest per_device_train_batch_size {_around(per_device, step)}; "
            "or state prompts_per_step"
        )

    if request.eval_strategy != "no":
        if request.validation_size == 0:
            raise RequestError(
                f"eval_strategy {request.eval_strategy} needs rows to evaluate on: set validation_size, "
                "which holds them out of the train split"
            )
        eval_generations = request.num_generations_eval or generations
        eval_batch = request.per_device_eval_batch_size * world_size
        if eval_batch % eval_generations:
            step = eval_generations // math.gcd(eval_generations, world_size)
            raise RequestError(
                f"an evaluation batch of {request.per_device_eval_batch_size} × {world_size} = {eval_batch} "
                f"completions is no whole groups of {eval_generations} generations: nearest per_device_eval_batch_size "
                f"{_around(request.per_device_eval_batch_size, step)}; or set num_generations_eval"
            )
    return accumulation


def _nearest_batches(prompts: int, generations: int, per_device: int, world_size: int) -> str:
    """The nearest values that divide, of the micro-batch and of the prompts."""
    mends = []
    completions = prompts * generations
    sizes = [size for size in range(1, completions + 1) if completions % (size * world_size) == 0]
    if sizes:
        below = [size for size in sizes if size < per_device][-1:]
        above = [size for size in sizes if size > per_device][:1]
        mends.append(f"nearest per_device_train_batch_size {' or '.join(map(str, below + above))}")
    micro_batch = per_device * world_size
    mends.append(f"nearest prompts_per_step {_around(prompts, micro_batch // math.gcd(micro_batch, generations))}")
    return ", or ".join(mends)


def _around(value: int, step: int) -> str:
    """The multiples of `step` next to `value`, which is none itself."""
    below = value // step * step
    return " or ".join(str(multiple) for multiple in (below, below + step) if multiple > 0)


# ---------------------------------------------------------------------------------------------------------
# The run's directory
# ---------------------------------------------------------------------------------------------------------


def check_run_directory(request, recipe: dict) -> tuple[str | None, int | None, bool]:
    """Where the run stands: `(checkpoint to resume from, steps if it is finished, whether to move it aside)`."""
    directory = Path(request.output_dir).expanduser()
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"output_dir {directory} is a file")
    path = request.resume_from_checkpoint
    wish = None if path is None else path.lower()
    if wish not in (None, "true", "false"):
        if not (Path(path) / "trainer_state.json").is_file():
            raise RequestError(f"resume_from_checkpoint {path} is no complete checkpoint: it has no trainer_state.json")
        return path, None, False

    checkpoint = last_checkpoint(directory)
    if wish == "true" and checkpoint is None:
        raise RequestError(f"resume_from_checkpoint: {directory} holds no complete checkpoint to resume from")

    saved = directory / "recipe.yaml"
    if request.overwrite_output_dir and directory.is_dir() and any(directory.iterdir()):
        return None, None, True
    if not saved.is_file():
        if directory.is_dir() and (has_weights(directory) or checkpoint):
            raise RequestError(
                f"{directory} holds a model that no run of this script wrote: give another --output_dir, "
                "or --overwrite_output_dir, which moves it aside"
            )
        return None, None, False
    if wish == "false":
        raise RequestError(
            f"{directory} holds a run already: --overwrite_output_dir moves it aside, or give another --output_dir"
        )
    before = yaml.safe_load(saved.read_text()) or {}
    changed = [
        key
        for key in sorted(before.keys() | recipe.keys())
        if before.get(key) != recipe.get(key) and key not in MAY_CHANGE and not key.startswith(MAY_CHANGE_PREFIXES)
    ]
    if changed:
        differences = "; ".join(f"{key}: {before.get(key)} there, {recipe.get(key)} here" for key in changed[:4])
        raise RequestError(
            f"{directory} holds the run of another recipe ({differences}{'; …' if len(changed) > 4 else ''}): "
            "give another --output_dir, or --overwrite_output_dir, which moves that run aside"
        )
    state_file = directory / "trainer_state.json"
    if state_file.is_file() and has_weights(directory):
        state = TrainerState.load_from_json(str(state_file))
        same_length = all(before.get(key) == recipe.get(key) for key in ("max_steps", "num_train_epochs"))
        target = state.max_steps if same_length else request.max_steps
        if 0 < target <= state.global_step:
            return None, state.global_step, False
    return checkpoint, None, False


def last_checkpoint(directory: Path) -> str | None:
    """The complete checkpoint with the highest step; `trainer_state.json` is what the trainer writes last."""
    steps = [
        int(path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
        for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal() and (path / "trainer_state.json").is_file()
    ]
    return str(directory / f"{PREFIX_CHECKPOINT_DIR}-{max(steps)}") if steps else None


def has_weights(directory: Path) -> bool:
    """Whether a model or an adapter was saved there."""
    return any(directory.glob("*.safetensors"))


# ---------------------------------------------------------------------------------------------------------
# Model and data
# ---------------------------------------------------------------------------------------------------------


def check_model(request) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer as training uses it, and the tokens that end a completion. No weights are loaded."""
    name = request.model_name_or_path
    folder = Path(name).expanduser()
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if folder.is_dir():
        if missing := missing_weights(folder):
            raise RequestError(f"model folder {name} holds no {missing}")
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):  # transformers would make up an empty one
            raise RequestError(f"model folder {name} holds no tokenizer: tokenizer.save_pretrained puts it there")
    elif name == TOY_BASE:
        raise RequestError(f"there is no model folder {name}: python toy.py makes it")
    elif name.startswith((".", "/", "~")):
        raise RequestError(f"there is no model folder {name}")
    source = {"revision": request.model_revision, "trust_remote_code": request.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **source)
        tokenizer = AutoTokenizer.from_pretrained(name, **source, padding_side="left", truncation_side="left")
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RequestError(
            f"model {name} is neither a local folder nor found on the hub or in its cache: "
            + (OFFLINE_MEND if offline else reason)
        ) from error
    if not folder.is_dir() and (request.prefetch or offline):
        check_hub_weights(name, request.model_revision, offline)
    if request.prompt_style != "r1_zero" and not tokenizer.chat_template:
        raise RequestError(
            f"the tokenizer of {name} has no chat template, which prompt_style {request.prompt_style} needs: "
            "use --prompt_style r1_zero"
        )
    try:
        declared = GenerationConfig.from_pretrained(name, revision=request.model_revision).eos_token_id
    except OSError:  # a model need not have one
        declared = config.eos_token_id
    declared = [declared] if isinstance(declared, int) else declared
    return tokenizer, gsm8k.end_completions(tokenizer, request.prompt_style, declared)


def check_hub_weights(name: str, revision: str, offline: bool) -> None:
    """Download a model's weights into the cache; offline, refuse if they are not all there."""
    try:
        snapshot = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(MODEL_FILES), local_files_only=offline
        )
    except (OSError, ValueError) as error:
        if offline:
            raise RequestError(f"model {name} is not whole in the cache: {OFFLINE_MEND}") from error
        reason = str(error).strip().split("\n")[0]
        raise RequestError(f"model {name} cannot be downloaded: {reason}") from error
    if missing := missing_weights(Path(snapshot)):
        raise RequestError(f"model {name} has no {missing} on the hub")


def missing_weights(folder: Path) -> str | None:
    """What a model's folder lacks of its weights: the name of a file, or None if they are whole."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return next((shard for shard in shards if not (folder / shard).is_file()), None)
    return None if has_weights(folder) else "*.safetensors"


def check_data(request):
    """The train split in TRL's form, and the part of it that is held out for validation (None for no rows)."""
    try:
        rows = gsm8k.load(request.dataset_name, request.dataset_config, request.dataset_train_split)
        train_dataset, eval_dataset = gsm8k.to_training_set(rows, request.prompt_style, request.validation_size)
    except gsm8k.DatasetError as error:
        fetchable = isinstance(error.__cause__, FileNotFoundError | ConnectionError)
        mend = f"; {OFFLINE_MEND}" if fetchable and huggingface_hub.constants.HF_HUB_OFFLINE else ""
        raise RequestError(f"{error}{mend}") from error
    prompts = request.prompts_per_step or 1
    if len(train_dataset) < prompts:
        raise RequestError(
            f"{request.dataset_name} has {len(train_dataset)} rows to train on, fewer than prompts_per_step {prompts}"
        )
    return train_dataset, eval_dataset
