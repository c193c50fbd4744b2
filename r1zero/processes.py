"""Processes and engines: the accelerate config, GPUs, and vLLM."""

import importlib.metadata
import sys
import time
from contextlib import suppress
from os import environ
from pathlib import Path

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from r1zero.recipe import RequestError, those_in

COMPILE_MINUTES = 15  # more than DeepSpeed needs to compile its operations
VLLM = "0.30.0"  # the version for the torch and transformers in requirements.txt


def has_gpu() -> bool:
    """Whether there is a GPU to train on. Apple's is not one: it has no double precision, and was not tried."""
    return torch.accelerator.is_available() and torch.accelerator.current_accelerator().type != "mps"


def check(path: str | None, plan) -> None:
    """Refuse an accelerate config that does not fit the machine, or that accelerate would silently run as another one.

    Without a path it is what `accelerate launch` has set in the environment. Sets `sharding` and `on_cpu` of the plan.
    """
    try:
        config = load_config_from_file(path) if path is not None else None
    except FileNotFoundError:
        there_are = f"there are {those_in('configs/accelerate')}"
        raise RequestError(f"there is no accelerate config {path}; {there_are}") from None
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise RequestError(f"accelerate config {path} cannot be read: {' '.join(str(error).split())}") from error
    if config:
        kind, on_cpu = config.distributed_type, config.use_cpu
        stage = config.deepspeed_config.get("zero_stage", 2) if kind == "DEEPSPEED" else None
    else:
        kind = next((one for one in ("DEEPSPEED", "FSDP") if environ.get(f"ACCELERATE_USE_{one}") == "true"), None)
        on_cpu, stage = environ.get("ACCELERATE_USE_CPU") == "true", environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    plan.sharding = f"zero{stage}" if kind == "DEEPSPEED" else "fsdp" if kind == "FSDP" else "none"
    if kind == "NO" and plan.num_processes > 1:
        problem = f"accelerate config {path} is for one process, not {plan.num_processes}"
        raise RequestError(f"{problem}: use ddp.yaml or zero2.yaml")
    if kind == "FSDP" and not has_gpu():
        fix = "use cpu.yaml, or zero3.yaml, which also splits the model on CPUs"
        raise RequestError(f"FSDP needs GPUs: without one accelerate silently runs plain DDP instead; {fix}")
    if kind == "DEEPSPEED":
        _check_compile_lock()
    gpus, here = torch.cuda.device_count(), int(environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus and not on_cpu and here > gpus:
        raise RequestError(f"{here} processes on a machine with {gpus} GPUs: NUM_PROCESSES={gpus} for rl_grpo.sh")
    if gpus and on_cpu:
        plan.warn("accelerate config", f"it uses the CPU and leaves {gpus} GPUs idle")
    if torch.accelerator.is_available() and not has_gpu():
        plan.warn("accelerate config", "Apple's GPU is not used: the training runs on the CPU")
    # A plan for GPUs can be made on a machine that has none.
    plan.on_cpu = not has_gpu() and (config is None or bool(on_cpu))


def _check_compile_lock() -> None:
    """Torch waits forever for the lock of a DeepSpeed start that was killed while it compiled: find it first."""
    from torch.utils.cpp_extension import get_default_build_root  # takes a quarter of a second

    root = Path(environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        with suppress(FileNotFoundError):  # the compilation has just ended
            if (minutes := (time.time() - lock.stat().st_mtime) / 60) > COMPILE_MINUTES:
                problem = f"{lock} is {minutes:.0f} minutes old: a DeepSpeed start was killed while it compiled"
                raise RequestError(f"{problem}, and every later one would wait for it: delete that file")


def check_vllm(request) -> None:
    """That vLLM, if it generates, has the right version and a GPU. TRL reports a vLLM server that does not answer."""
    if request.use_vllm:
        check_vllm_version()
        if not (request.preflight or request.prefetch or torch.cuda.is_available()):
            raise RequestError("use_vllm: vLLM needs a GPU, and there is none here")


def check_vllm_version() -> None:
    install = f"pip install vllm=={VLLM}"
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise RequestError(f"use_vllm: vLLM is not installed: {install}") from None
    if version.split("+")[0] != VLLM:
        raise RequestError(f"use_vllm: vLLM {version} does not fit the pinned torch and transformers: {install}")


def settle(request, plan) -> None:
    """Set what follows from the plan and the machine, before TRL's `GRPOConfig` is made, which claims the device."""
    request.gradient_accumulation_steps = plan.gradient_accumulation_steps
    environ["ACCELERATE_MIXED_PRECISION"] = "no"  # the recipe's bf16 decides, whatever the accelerate config says
    if not has_gpu():
        environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which transformers imports, warns
        # To accelerate, `use_cpu` means plain DDP even if DeepSpeed was asked for. DeepSpeed only needs gloo.
        deepspeed = plan.sharding.startswith("zero")
        request.use_cpu, request.ddp_backend = (False, "gloo") if deepspeed else (True, None)
    if request.ddp_find_unused_parameters is None:  # a causal language model uses all of its parameters
        request.ddp_find_unused_parameters = False
    if not request.validation_size:
        request.eval_on_start = False
    if request.hub_token:
        # The hub's client reads it here. Checkpoints hold the arguments, and wandb keeps the command line.
        sys.argv = [word.replace(request.hub_token, "…") for word in sys.argv]
        environ["HF_TOKEN"], request.hub_token = request.hub_token, None
