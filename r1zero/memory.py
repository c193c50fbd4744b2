"""How much memory and disk a training needs, estimated from the model's configuration and the request.

Nothing is loaded or run. `docs/performance.md` compares the estimate with measured peaks.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM
from trl import get_peft_config

from r1zero.model import compute_dtype
from r1zero.recipe import RequestError
from r1zero.run_directory import nearest_folder

GIB = 2**30
LIBRARIES = 0.55 * GIB  # Python with torch, transformers and TRL in a process without a GPU
# What processes split among them, by `Plan.sharding`.
SHARED = {
    "weights": ("zero3", "fsdp"),
    "gradients": ("zero2", "zero3", "fsdp"),
    "optimizer": ("zero1", "zero2", "zero3", "fsdp"),
}


@dataclass
class Size:
    """Number of parameters, and input features of all adapters together, of which each token keeps one number each."""

    total: int
    trained: int
    adapter_inputs: int = 0


def size_of(config, request) -> Size:
    """Count a model's parameters, and those of the adapter that the request adds, without allocating them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=request.trust_remote_code)
        if not request.use_peft:
            return Size(model.num_parameters(), model.num_parameters())
        adapter = get_peft_config(request)
        if len(adapter.target_modules or ()) == 1:  # a name such as `all-linear`, which TRL's ModelConfig wraps
            (adapter.target_modules,) = adapter.target_modules
        model = peft.get_peft_model(model, adapter)
    trained, total = model.get_nb_trainable_parameters()
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    return Size(total, trained, sum(layer.in_features for layer in layers))


def prompt_tokens(tokenizer, prompts: list) -> list[int]:
    """Tokens of each prompt. The chat template is rendered once, because it adds the same tokens to each prompt."""
    if isinstance(prompts[0], str):
        return list(map(len, tokenizer(prompts)["input_ids"]))
    around = tokenizer.apply_chat_template(prompts[0], add_generation_prompt=True, tokenize=True, return_dict=False)
    texts = [prompt[-1]["content"] for prompt in prompts]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return [length + len(around) - lengths[0] for length in lengths]


def long_prompts(tokenizer, prompts: list, share: float = 0.03, at_least: int = 200) -> tuple[int, int]:
    """Tokens of the longest prompt, and the 99th percentile; only prompts with the most characters are tokenized."""
    longest = sorted(prompts, key=lambda prompt: -len(prompt if isinstance(prompt, str) else prompt[-1]["content"]))
    few = longest[: max(at_least, round(share * len(prompts)))]
    lengths = sorted(prompt_tokens(tokenizer, few), reverse=True)
    return lengths[0], lengths[len(prompts) // 100]


def estimate(
    size: Size, config, request, sharding: str, processes: int, prompt: int, accumulation: int, on_cpu: bool = False
) -> dict[str, float]:
    """Bytes on each process, by part.

    Args:
        size: see `size_of`.
        config: the model's configuration.
        sharding, processes, accumulation, on_cpu: see `plan.Plan`.
        prompt: tokens of a long prompt.

    Returns:
        What stays: `weights`, `gradients`, `optimizer`, on a CPU `libraries`. In the backward pass `activations` and
        `head`. In generation, unless vLLM does it, `cache` and `sampling`, and under ZeRO-3 `gathered`, the complete
        weights. `peak`: what stays, plus the larger of backward pass and generation.
    """
    config = config.get_text_config()
    half, deepspeed = compute_dtype(request) != "fp32", sharding.startswith("zero")
    share = {name: processes if sharding in kinds else 1 for name, kinds in SHARED.items()}
    # With autocast: fp32 weights, their 16-bit copies in the forward and backward pass or for generation, fp32
    # gradients, AdamW's two moments. DeepSpeed in 16 bits: 16-bit weights, 16-bit gradients that it frees bucket by
    # bucket, and in its optimizer fp32 gradients, master weights and moments (arXiv:1910.02054, section 3.1).
    stored = 2 if request.dtype in ("bfloat16", "float16") else 4
    sharded_half = half and deepspeed
    copies = 2 if half and not deepspeed and stored == 4 else 0
    weight = 2 if sharded_half and not request.use_peft else stored
    moments = 2 if "8bit" in request.optim else 8
    stays = {
        "weights": size.total * (weight / share["weights"] + copies),
        "gradients": size.trained * 4 / share["gradients"],
        "optimizer": size.trained * (4 * sharded_half + moments) / share["optimizer"],
    }
    if sharding == "none" and processes > 1:
        stays["gradients"] *= 2  # DDP's buckets
    if on_cpu:
        stays["libraries"] = LIBRARIES

    number, hidden, layers = 2 if half else 4, config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    keys_and_values = 2 * layers * heads * head_size * number  # per token
    rows, completion = request.per_device_train_batch_size, request.max_completion_length
    # What a layer keeps per token for the backward pass: norms, queries and attention (in fp32 nine numbers per hidden
    # unit, of which autocast keeps the norms' in fp32), four numbers per unit of the gated feed-forward, and each
    # adapter's input after dropout with its mask. Attention scores are not kept.
    of_layer = hidden * (36 if not half else 24 if deepspeed else 40) + 4 * inner * number
    of_adapters = size.adapter_inputs * (number + (request.lora_dropout > 0))
    checkpointing = request.activation_checkpointing
    scored = rows * (completion + 1)
    if request.gradient_checkpointing if checkpointing is None else checkpointing:
        scored = rows * (prompt + completion) if on_cpu else scored
        # Only each layer's input is kept, and one layer at a time is computed again.
        activations = rows * (prompt + completion) * (layers * hidden * 4 + of_layer + of_adapters / layers)
    else:
        # A prompt is read once for all of its completions in a micro-batch, but its keys and values are kept for each.
        prompts = min(rows, -(-rows * accumulation // request.num_generations))
        prompts = rows if sharding in ("zero3", "fsdp") else prompts
        activations = (rows * completion + prompts * prompt) * (layers * of_layer + of_adapters)
        activations += rows * (prompt + completion) * keys_and_values
    # TRL's fused head makes a tile of the logits at a time (trl/kernels/chunked_logprob.py), and in the backward pass
    # an fp32 gradient of its weights if they are trained. Without Triton, it also scores prompts, if it gets
    # them, and a tile takes nine more in fp32.
    tile = min(scored, 4096) * min(config.vocab_size, 32768)
    head = tile * (number + 37 * on_cpu) + (0 if request.use_peft else config.vocab_size * hidden * 4)
    generation = {}
    if not request.use_vllm:
        together = rows * (request.steps_per_generation or accumulation)
        generation["cache"] = together * (prompt + completion) * keys_and_values
        # A word's logit and score in fp32, its probability, and their cumulative sum in double: `rollouts.draw`.
        generation["sampling"] = together * config.vocab_size * (4 + 4 + 4 + 8)
        if sharding == "zero3" and request.ds3_gather_for_generation:
            generation["gathered"] = size.total * weight
    peak = sum(stays.values()) + max(sum(generation.values()), activations + head)
    return {**stays, "activations": activations, "head": head, **generation, "peak": peak}


def checkpoint_bytes(size: Size) -> tuple[int, int]:
    """Bytes of a checkpoint and of the final model: fp32 weights, and in a checkpoint AdamW's two moments in fp32."""
    weights = 4 * (size.trained if size.trained < size.total else size.total)
    return weights + 8 * size.trained, weights


def check_prompts(request, plan) -> int:
    """Check that prompts and completions fit the model's context; returns tokens of a long prompt, see `long_prompts`.

    Adds `prompts` to the plan's table.
    """
    prompts = [prompt for rows in (plan.train_dataset, plan.eval_dataset) if rows for prompt in rows["prompt"][:]]
    longest, long_one = long_prompts(plan.tokenizer, prompts)
    completion = request.max_completion_length
    context = getattr(plan.config.get_text_config(), "max_position_embeddings", None)
    if context and longest + completion > context:
        too_long = sum(length + completion > context for length in prompt_tokens(plan.tokenizer, prompts))
        room = context - longest
        fix = f"max_completion_length {room}, or a shorter prompt_style" if room > 0 else "use a shorter prompt_style"
        raise RequestError(
            f"{too_long} of {len(prompts)} prompts (the longest has {longest} tokens) and a completion of {completion} "
            f"do not fit the model's context of {context}: {fix}"
        )
    limit = f", of the model's {context}" if context else ""
    plan.row("prompts", f"at most {longest} tokens (99 % up to {long_one}) + {completion} for the completion{limit}")
    return long_one


def check_room(request, plan, size: Size, prompt: int) -> None:
    """Refuse a run whose checkpoints do not fit the disk; warn if it may not fit the GPU.

    Adds `memory` and `disk` to the plan's table.
    """
    accumulation = plan.gradient_accumulation_steps
    parts = estimate(
        size, plan.config, request, plan.sharding, plan.num_processes, prompt, accumulation, plan.on_cpu
    )  # fmt: skip
    peak = as_text(parts["peak"])
    each = " + ".join(f"{name} {as_text(value)}" for name, value in parts.items() if name != "peak")
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    here = f"; this GPU has {as_text(gpu)}" if gpu else ""
    plan.row("memory", f"about {peak} per process at its peak ({each}){here}")
    if gpu and parts["peak"] > 0.95 * gpu and not request.preflight:
        fix = "a smaller per_device_train_batch_size, activation_checkpointing, or zero3.yaml"
        plan.warn("memory", f"a GPU needs about {peak} by estimate and has {as_text(gpu)}: {fix}")
    directory = Path(request.output_dir).expanduser()
    free = shutil.disk_usage(nearest_folder(directory)).free
    checkpoint, final = checkpoint_bytes(size)
    saves = ""
    if request.save_strategy != "no":
        limit = request.save_total_limit
        saves = f"checkpoints of {as_text(checkpoint)}, {f'{limit} kept' if limit else 'all kept'}, "
        if free < checkpoint + final:
            raise RequestError(
                f"{free / 1e9:.1f} GB are free for {directory}, but a checkpoint ({checkpoint / 1e9:.1f} GB) and the "
                f"final model ({final / 1e9:.1f} GB) need more: give an --output_dir on another disk"
            )
        count = (limit or 2) + 1  # an old checkpoint is deleted after the new one is complete
        if free < count * checkpoint + final:
            need = f"{count} checkpoints at a time and the final model need {(count * checkpoint + final) / 1e9:.1f} GB"
            plan.warn("disk", f"{free / 1e9:.1f} GB are free; {need}" + ("" if limit else ": set save_total_limit"))
    plan.row("disk", f"{saves}final model {as_text(final)}; {as_text(free)} are free")


def as_text(count: float) -> str:
    """A number of bytes for a reader."""
    gib = count / GIB
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / 2**20:.1f} MiB"
