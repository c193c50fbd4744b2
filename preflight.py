"""Every check that can fail a run before its weights are loaded, and the plan of the run.

`check` reads a request and what it names (rewards, batch, run directory, tokenizer, data) and returns the plan, with
what each check found: a line that says what is wrong and how to mend it. It takes a second or two and no GPU.
"""

import argparse
import asyncio
import glob
import importlib.metadata
import inspect
import json
import math
import os
import shutil
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME

import checkpoints
import estimates
import gsm8k
import report
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
TOY_DATA = f"{TOY_BASE}/data"
COMPILING_MINUTES = 15  # more than DeepSpeed's operations take
VLLM = "0.30.0"  # the one that asks for the torch and transformers pinned in requirements.txt

# What a model's folder on the hub holds beside weights in other formats.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
OFFLINE_MEND = "`bash rl_grpo.sh --prefetch` where there is a network downloads it, HF_HUB_OFFLINE=0 looks for it now"


@dataclass
class Finding:
    """What one check found: `ok`, `warning` or `error`, and in one line what is wrong and how to mend it."""

    status: str
    check: str
    message: str = ""


@dataclass
class Plan:
    """What `check` found out, so that nothing is read twice; what could not be found out is None.

    Attributes:
        findings: a line a check and a warning, see `Finding`.
        table: the plan of the run as (what, how much), to be read by a person.
        reward_funcs: the functions, in the recipe's order.
        world_size: processes that the batch is split over.
        gradient_accumulation_steps: micro-batches an optimizer step, of `per_device_train_batch_size`
            completions on each process.
        tokenizer: the model's, with the pad token that training uses.
        end_token_ids: the tokens of which each ends a completion.
        train_dataset, eval_dataset: columns `prompt` and `solution`; the second is None without validation.
        checkpoint: the one to resume from, or None.
        passed_over: the names of later checkpoints, which are not whole.
        finished_steps: how many steps the run in the directory did, if it is finished; else None.
        run_to_move: whether what is in the directory is to be moved aside first.
    """

    findings: list[Finding] = field(default_factory=list)
    table: list[tuple[str, str]] = field(default_factory=list)
    reward_funcs: list[Callable] | None = None
    world_size: int = 1
    gradient_accumulation_steps: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    end_token_ids: list[int] | None = None
    train_dataset: object = None
    eval_dataset: object = None
    checkpoint: str | None = None
    passed_over: list[str] = field(default_factory=list)
    finished_steps: int | None = None
    run_to_move: bool = False

    @contextmanager
    def finding(self, check: str):
        """Around a check: its refusal is kept, so that all that is wrong is said at once."""
        try:
            yield
            self.findings.append(Finding("ok", check))
        except RequestError as error:
            self.findings.append(Finding("error", check, str(error)))

    def warn(self, check: str, message: str) -> None:
        self.findings.append(Finding("warning", check, message))

    def failed(self, check: str) -> bool:
        return any(finding.check == check and finding.status == "error" for finding in self.findings)

    @property
    def errors(self) -> list[str]:
        """What is wrong, each once: more than one check may come upon it."""
        return list(dict.fromkeys(finding.message for finding in self.findings if finding.status == "error"))


def check(request: argparse.Namespace, recipe: dict) -> Plan:
    """Check a request, and find out what it will need.

    Args:
        request: every field of the parser's dataclasses, see `recipe.RecipeParser.read`.
        recipe: the same request resolved, see `recipe.RecipeParser.resolve`.

    Returns:
        The plan. Where it has `errors`, the request cannot be run as it is.
    """
    plan = Plan(world_size=request.num_processes or int(os.environ.get("WORLD_SIZE", "1")))
    config = size = lengths = None
    with plan.finding("request"):
        check_request(request)
    with plan.finding("rewards"):
        plan.reward_funcs = check_rewards(request)
    with plan.finding("topology"):
        check_topology(request.accelerate_config, plan)
    with plan.finding("vllm"):
        check_vllm(request)
    with plan.finding("batch"):
        plan.gradient_accumulation_steps = check_batch(request, plan.world_size)
    if request.output_dir:
        with plan.finding("directory"):
            check_run_directory(request, recipe, plan)
            check_writable(Path(request.output_dir).expanduser())
    with plan.finding("port"):
        check_port()
    if request.model_name_or_path:
        with plan.finding("model"):
            config, plan.tokenizer, plan.end_token_ids = check_model(request)
            check_precision(request, config, plan)
            size = estimates.size_of(config, request)
    if request.dataset_name:
        with plan.finding("data"):
            plan.train_dataset, plan.eval_dataset = check_data(request)
    if plan.tokenizer and plan.train_dataset:
        with plan.finding("prompts"):
            lengths = check_prompts(request, plan, config)
        if plan.reward_funcs:
            with plan.finding("reward values"):
                check_reward_values(request, plan)
    if size and lengths and plan.gradient_accumulation_steps and not plan.failed("directory"):
        with plan.finding("memory and disk"):
            check_room(request, plan, size, lengths)
    plan.table = describe(request, plan, size, lengths)
    return plan


def check_request(request) -> None:
    """What has to be said, and what cannot be combined."""
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


# ---------------------------------------------------------------------------------------------------------
# Rewards
# ---------------------------------------------------------------------------------------------------------


def check_rewards(request) -> list[Callable]:
    """The reward functions that the request names."""
    names = request.reward_funcs
    if not names:
        raise RequestError(f"reward_funcs is empty: choose from {', '.join(rewards.REWARDS)}")
    if len(set(names)) < len(names):
        raise RequestError(f"reward_funcs names a reward twice: {' '.join(names)}; use reward_weights to weigh it")
    weights = request.reward_weights
    if weights is not None and len(weights) != len(names):
        raise RequestError(f"{len(weights)} reward_weights for {len(names)} reward_funcs: give one weight a reward")
    if weights is not None and not all(map(math.isfinite, weights)):
        raise RequestError(f"reward_weights {weights} are not all numbers")
    try:
        return [rewards.load(name, request.max_completion_length) for name in names]
    except (ValueError, ImportError) as error:
        raise RequestError(str(error)) from error


def check_reward_values(request, plan: Plan, rows: int = 8) -> None:
    """Run every reward on a few real rows, as TRL will, with a right answer, a wrong one and none.

    Raises:
        RequestError: one raises, or gives what is no reward, or their weighted sum does not pay a right answer most.
    """
    batch = plan.train_dataset.select(range(min(rows, len(plan.train_dataset))))
    golds = [gsm8k.read_gold(solution) for solution in batch["solution"]]
    weights = request.reward_weights or [1.0] * len(plan.reward_funcs)
    # As long as the right one, so that only rightness differs.
    other = [gold + (1 if len(str(gold + 1)) == len(str(gold)) else -1) for gold in golds]
    sums = {}
    for kind in ("right", "wrong", "empty"):
        texts = [
            "" if kind == "empty" else f"<think>I add it up.</think>\n<answer>{answer}</answer>"
            for answer in (golds if kind == "right" else other)
        ]
        chat = not isinstance(batch[0]["prompt"], str)
        arguments = {
            "prompts": list(batch["prompt"]),
            "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            "completion_ids": plan.tokenizer(texts)["input_ids"],
            "trainer_state": TrainerState(),
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
            **{name: list(batch[name]) for name in batch.column_names if name != "prompt"},
        }
        sums[kind] = [0.0] * len(batch)
        for name, function, weight in zip(request.reward_funcs, plan.reward_funcs, weights, strict=True):
            try:
                values = function(**arguments)
                values = asyncio.run(values) if inspect.isawaitable(values) else values
            except Exception as error:  # whatever a function of the user's own does
                reason = f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"
                raise RequestError(f"reward {name} raises {reason} on {texts[0]!r}") from error
            fits = isinstance(values, (list, tuple)) and len(values) == len(batch)
            if not fits or not all(value is None or _is_finite(value) for value in values):
                raise RequestError(
                    f"reward {name} gives {str(values)[:100]} for {len(batch)} completions: "
                    "a reward gives a list of finite numbers (or None), one a completion"
                )
            sums[kind] = [total + weight * (value or 0.0) for total, value in zip(sums[kind], values, strict=True)]
    for right, wrong, empty in zip(*sums.values(), strict=True):
        if right <= max(wrong, empty):
            raise RequestError(
                f"the rewards {' '.join(request.reward_funcs)} pay {right:g} for a right answer, {wrong:g} for a wrong "
                f"one and {empty:g} for none: no training gets more right from that; add accuracy, or mend the weights"
            )


def _is_finite(value) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


# ---------------------------------------------------------------------------------------------------------
# Topology and vLLM
# ---------------------------------------------------------------------------------------------------------


def check_topology(path: str | None, plan: Plan) -> None:
    """Refuse a topology that does not fit the machine, or that accelerate would run as another one without a word.

    Args:
        path: the topology's file; None under a launcher, which has read it.
        plan: with the processes that it is to run on; gets a warning where GPUs are left idle.
    """
    sharding = read_sharding(path)
    if path is not None and load_config_from_file(path).distributed_type == "NO" and plan.world_size > 1:
        raise RequestError(f"topology {path} is of one process, not {plan.world_size}: take ddp.yaml or zero2.yaml")
    if sharding == "fsdp" and not torch.accelerator.is_available():
        raise RequestError(
            "FSDP needs GPUs: without one accelerate runs plain DDP in its place and does not say so; "
            "take cpu.yaml, or zero3.yaml, which splits the model on CPUs too"
        )
    if sharding.startswith("zero"):
        check_compiling()
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "true"
    if path is not None:
        on_cpu = bool(load_config_from_file(path).use_cpu)
    if gpus and not on_cpu and here > gpus:
        raise RequestError(f"{here} processes on a machine with {gpus} GPUs: NUM_PROCESSES={gpus} for rl_grpo.sh")
    if gpus and on_cpu:
        plan.warn("topology", f"it is of CPUs, and leaves {gpus} GPUs idle")


def check_compiling() -> None:
    """That no start of DeepSpeed was killed while it compiled: torch would wait for that one's lock for ever."""
    from torch.utils.cpp_extension import get_default_build_root  # takes a quarter of a second

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(get_default_build_root(), "*")
    for lock in glob.glob(os.path.join(root, "*", "lock")):
        try:
            minutes = (time.time() - os.stat(lock).st_mtime) / 60
        except FileNotFoundError:  # compiled just now
            continue
        if minutes > COMPILING_MINUTES:
            raise RequestError(
                f"{lock} is {minutes:.0f} minutes old: a DeepSpeed start was killed while it compiled, and every later "
                "one would wait for it: delete that file"
            )


def read_sharding(path: str | None) -> str:
    """What a topology splits among processes: `none`, `zero1`, `zero2`, `zero3` or `fsdp`.

    Args:
        path: the topology's file; None for what `accelerate launch` has set.
    """
    if path is None:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
        return "fsdp" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else "none"
    try:
        topology = load_config_from_file(path)
    except FileNotFoundError:
        raise RequestError(f"there is no topology {path}; there are {those_in('configs/accelerate')}") from None
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise RequestError(f"topology {path} cannot be read: {' '.join(str(error).split())}") from error
    if topology.distributed_type == "DEEPSPEED":
        return f"zero{topology.deepspeed_config.get('zero_stage', 2)}"
    return "fsdp" if topology.distributed_type == "FSDP" else "none"


def check_port() -> None:
    """That the port at which the processes are to meet is free; before the launcher, which then takes it."""
    port = os.environ.get("MAIN_PROCESS_PORT", "0")
    if "MASTER_PORT" in os.environ or os.environ.get("SLURM_NODEID", "0") != "0":
        return
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", int(port or "0")))
    except (ValueError, OverflowError):
        raise RequestError(f"MAIN_PROCESS_PORT {port!r} is no port: a number up to 65535") from None
    except OSError as error:
        raise RequestError(
            f"port {port} is taken or not allowed ({error.strerror}): give another MAIN_PROCESS_PORT, or none at all"
        ) from error


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


def check_run_directory(request, recipe: dict, plan: Plan) -> None:
    """Where the run stands, into the plan: what to resume from, whether it is finished, what is to be moved aside."""
    directory = Path(request.output_dir).expanduser()
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"output_dir {directory} is a file")
    path = request.resume_from_checkpoint
    wish = None if path is None else path.lower()
    if wish not in (None, "true", "false"):
        try:
            step = TrainerState.load_from_json(str(Path(path, TRAINER_STATE_NAME))).global_step
        except (OSError, ValueError, TypeError) as error:
            raise RequestError(
                f"resume_from_checkpoint {path} is no complete checkpoint: it has no {TRAINER_STATE_NAME} that can be "
                "read"
            ) from error
        found = checkpoints.all_checkpoints(directory) if Path(path).resolve().parent == directory.resolve() else {}
        if later := [one.name for its_step, one in found.items() if its_step > step]:
            raise RequestError(
                f"resume_from_checkpoint {path}: {', '.join(later)} would be taken for this run's later ones: "
                "move them out of the directory, or leave resume_from_checkpoint out to go on from the last"
            )
        plan.checkpoint = path
        return

    checkpoint, plan.passed_over = checkpoints.last_whole(directory)
    if wish == "true" and checkpoint is None:
        raise RequestError(f"resume_from_checkpoint: {directory} holds no complete checkpoint to resume from")

    saved = directory / "recipe.yaml"
    if request.overwrite_output_dir and directory.is_dir() and any(directory.iterdir()):
        plan.run_to_move, plan.passed_over = True, []
        return
    if not saved.is_file():
        if directory.is_dir() and (has_weights(directory) or checkpoints.all_checkpoints(directory)):
            raise RequestError(
                f"{directory} holds a model that no run of this script wrote: give another --output_dir, "
                "or --overwrite_output_dir, which moves it aside"
            )
        return
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
    plan.checkpoint = checkpoint and str(checkpoint)
    if plan.passed_over:
        names = ", ".join(plan.passed_over)
        plan.warn("directory", f"{names}: not whole, since its save was interrupted, and passed over")
    done = checkpoints.sealed_step(directory)
    if done is not None:
        same_length = all(before.get(key) == recipe.get(key) for key in ("max_steps", "num_train_epochs"))
        if same_length or 0 < request.max_steps <= done:
            plan.finished_steps = done


def nearest_folder(directory: Path) -> Path:
    """The directory itself, or what is there of the folders above it."""
    return next(path for path in (directory, *directory.absolute().parents) if path.is_dir())


def check_writable(directory: Path) -> None:
    """That a run can be written there; tried on the nearest folder that is there already."""
    try:
        with tempfile.TemporaryFile(dir=nearest_folder(directory)):
            pass
    except OSError as error:
        raise RequestError(
            f"output_dir {directory} cannot be written ({error.strerror}): give another --output_dir"
        ) from error


def has_weights(directory: Path) -> bool:
    """Whether a model or an adapter was saved there."""
    return any(directory.glob("*.safetensors"))


# ---------------------------------------------------------------------------------------------------------
# Model and data
# ---------------------------------------------------------------------------------------------------------


def check_model(request) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, list[int]]:
    """The configuration, the tokenizer as training uses it, the tokens that end a completion. No weights are loaded."""
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
        if "trust_remote_code" in str(error):
            raise RequestError(
                f"model {name} brings code of its own, which is run only if you ask for it: --trust_remote_code true"
            ) from error
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
    end_token_ids = gsm8k.end_completions(tokenizer, request.prompt_style, declared)
    if not end_token_ids:
        raise RequestError(
            f"{name} has no end-of-sequence token, so no completion would ever end: set eos_token in its "
            "tokenizer_config.json, or eos_token_id in its generation_config.json"
        )
    return config, tokenizer, end_token_ids


def check_precision(request, config, plan: Plan) -> None:
    """That what is trained is kept in fp32, and that the hardware computes in what is asked for."""
    dtype = request.dtype if request.dtype not in (None, "auto") else str(config.dtype or "float32")
    dtype = dtype.removeprefix("torch.")
    compute = estimates.compute_dtype(request)
    has_master = read_sharding(request.accelerate_config).startswith("zero") and compute != "fp32"
    if dtype in ("bfloat16", "float16") and not request.use_peft and not has_master:
        raise RequestError(
            f"dtype {dtype} keeps no fp32 master copy of the weights: at learning_rate {request.learning_rate:g} "
            "nearly every update rounds away; dtype: float32 with bf16: true computes in bf16 all the same"
        )
    batches = request.use_transformers_continuous_batching or request.use_transformers_paged
    if batches and compute != "fp32" and not has_master:
        raise RequestError(
            "use_transformers_continuous_batching: for it TRL turns the weights themselves to 16 bits, so that nearly "
            "every update rounds away; the topology zero2.yaml keeps an fp32 master copy, of one process too"
        )
    if compute == "bf16" and not request.preflight:
        if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise RequestError(f"bf16: {torch.cuda.get_device_name()} has none; bf16: false computes in fp32")
        if not torch.accelerator.is_available():
            plan.warn("precision", "bf16 on CPUs is several times slower than fp32 where they have no bf16 units")


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
        if request.dataset_name == TOY_DATA:
            mend = "; python toy.py makes it"
        raise RequestError(f"{error}{mend}") from error
    prompts = request.prompts_per_step or 1
    if len(train_dataset) < prompts:
        raise RequestError(
            f"{request.dataset_name} has {len(train_dataset)} rows to train on, fewer than prompts_per_step {prompts}"
        )
    return train_dataset, eval_dataset


# ---------------------------------------------------------------------------------------------------------
# Room: context, memory, disk
# ---------------------------------------------------------------------------------------------------------


def check_prompts(request, plan: Plan, config) -> tuple[int, int]:
    """That each prompt has room in the model's context, and its completion; see `estimates.long_prompts`."""
    prompts = [
        prompt for dataset in (plan.train_dataset, plan.eval_dataset) if dataset for prompt in dataset["prompt"][:]
    ]
    longest, long_one = estimates.long_prompts(plan.tokenizer, prompts)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context and longest + request.max_completion_length > context:
        lengths = estimates.prompt_tokens(plan.tokenizer, prompts)
        too_long = sum(length + request.max_completion_length > context for length in lengths)
        room = context - longest
        raise RequestError(
            f"{too_long} of {len(prompts)} prompts (the longest of {longest} tokens) and a completion of "
            f"{request.max_completion_length} do not fit the model's context of {context}: "
            + (
                f"max_completion_length {room}, or a shorter prompt_style"
                if room > 0
                else "take a shorter prompt_style"
            )
        )
    return longest, long_one


def check_room(request, plan: Plan, size: estimates.Size, lengths: tuple[int, int]) -> None:
    """That checkpoints fit the disk, and, by estimate, the training its GPU."""
    directory = Path(request.output_dir).expanduser()
    free = shutil.disk_usage(nearest_folder(directory)).free
    checkpoint, final = estimates.checkpoint_bytes(size)
    if request.save_strategy != "no":
        if free < checkpoint + final:
            raise RequestError(
                f"{free / 1e9:.1f} GB are free for {directory}, and a checkpoint ({checkpoint / 1e9:.1f} GB) and the "
                f"final model ({final / 1e9:.1f} GB) need more: give an --output_dir on another disk"
            )
        # A new checkpoint is whole before an old one goes.
        kept = (request.save_total_limit or 2) + 1
        if free < kept * checkpoint + final:
            plan.warn(
                "disk",
                f"{free / 1e9:.1f} GB are free, and {kept} checkpoints at a time and the final model take "
                f"{(kept * checkpoint + final) / 1e9:.1f} GB"
                + ("" if request.save_total_limit else ": set save_total_limit"),
            )
    if torch.cuda.is_available() and not request.preflight:
        need = _memory(request, plan, size, lengths)["peak"]
        there = torch.cuda.get_device_properties(0).total_memory
        if need > 0.95 * there:
            plan.warn(
                "memory",
                f"about {need / estimates.GIB:.0f} GiB a GPU are needed by estimate, and there are "
                f"{there / estimates.GIB:.0f} GiB: a smaller per_device_train_batch_size, "
                "activation_checkpointing, or zero3",
            )


def _memory(request, plan: Plan, size: estimates.Size, lengths: tuple[int, int]) -> dict[str, float]:
    sharding = read_sharding(request.accelerate_config)
    accumulation = plan.gradient_accumulation_steps
    return estimates.memory(size, request, sharding, plan.world_size, lengths[1], accumulation)


# ---------------------------------------------------------------------------------------------------------
# The plan, for a person
# ---------------------------------------------------------------------------------------------------------


def describe(
    request, plan: Plan, size: estimates.Size | None, lengths: tuple[int, int] | None
) -> list[tuple[str, str]]:
    """The plan of the run, as far as it could be found out: (what, how much)."""
    table = []
    where = f"{request.output_dir}, from the start"
    if plan.checkpoint:
        where = f"{request.output_dir}, resumed from {Path(plan.checkpoint).name}"
    if plan.finished_steps is not None:
        where = f"{request.output_dir}, finished ({plan.finished_steps} steps)"
    table.append(("run", where))
    if size:
        trained = f", {_amount(size.trained)} of them trained" if size.trained < size.total else ""
        compute = estimates.compute_dtype(request)
        table.append(
            ("model", f"{request.model_name_or_path}: {_amount(size.total)} parameters{trained}, computed in {compute}")
        )
    if plan.train_dataset:
        held_out = len(plan.eval_dataset or [])
        table.append(
            ("data", f"{request.dataset_name}: {len(plan.train_dataset)} rows to train on, {held_out} held out")
        )
    steps = None
    if plan.gradient_accumulation_steps:
        micro, processes, accumulation = (
            request.per_device_train_batch_size, plan.world_size, plan.gradient_accumulation_steps,
        )  # fmt: skip
        completions = micro * processes * accumulation
        prompts = completions // request.num_generations
        table.append(
            (
                "batch",
                f"{prompts} prompts × {request.num_generations} generations = {completions} completions a step = "
                f"{micro} × {processes} process{'es' * (processes > 1)} × {accumulation} accumulation steps",
            )
        )
        if plan.train_dataset:
            epoch = len(plan.train_dataset) / max(1, prompts)
            steps = request.max_steps if request.max_steps > 0 else math.ceil(request.num_train_epochs * epoch)
            table.append(("steps", f"{steps}, where an epoch is {epoch:.0f}"))
    if lengths:
        longest = f"{lengths[0]} tokens at most (99 % up to {lengths[1]})"
        context = getattr(size.config.get_text_config(), "max_position_embeddings", None) if size else None
        of = f", of the model's {context}" if context else ""
        table.append(("prompts", f"{longest} + {request.max_completion_length} to write{of}"))
    if size and lengths and plan.gradient_accumulation_steps:
        parts = _memory(request, plan, size, lengths)
        peak = parts.pop("peak")
        each = " + ".join(f"{name} {_bytes(value)}" for name, value in parts.items())
        there = ""
        if torch.cuda.is_available():
            there = f"; here are {_bytes(torch.cuda.get_device_properties(0).total_memory)}"
        table.append(("memory", f"about {_bytes(peak)} a process at its peak ({each}){there}"))
    if size:
        checkpoint, final = estimates.checkpoint_bytes(size)
        kept = f"{request.save_total_limit} kept" if request.save_total_limit else "all kept"
        directory = Path(request.output_dir or ".").expanduser()
        free = shutil.disk_usage(nearest_folder(directory)).free
        saves = f"checkpoints of {_bytes(checkpoint)}, {kept}, " if request.save_strategy != "no" else ""
        table.append(("disk", f"{saves}final model {_bytes(final)}; {_bytes(free)} are free"))
    table.append(("tracker", report.name_trackers(request.report_to, request.output_dir)))
    if steps:
        table.append(("time", _time(request, plan, steps)))
    return table


def _time(request, plan: Plan, steps: int) -> str:
    """How long it will take, by what this run was measured to take so far."""
    state = Path(request.output_dir or "", TRAINER_STATE_NAME)
    if plan.checkpoint and state.is_file():
        history = TrainerState.load_from_json(str(state)).log_history
        seconds = [entry["step_time"] for entry in history if "reward" in entry and "step_time" in entry]
        if seconds:
            done = TrainerState.load_from_json(str(Path(plan.checkpoint, TRAINER_STATE_NAME))).global_step
            each = statistics.median(seconds)
            hours = each * (steps - done) / 3600
            return f"{hours:.1f} hours for {steps - done} steps, at this run's {each:.1f} s a step so far"
    return "not known before the first steps"


def _amount(count: int) -> str:
    if count < 1e5:
        return f"{count:,}"
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _bytes(count: float) -> str:
    gib = count / estimates.GIB
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / 2**20:.1f} MiB"
