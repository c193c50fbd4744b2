"""How much a training will need, from a model's configuration and a request: nothing is loaded or run.

The memory is an estimate for planning, by part, with its sources beside the terms; it was not yet compared with a GPU.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM
from trl import get_peft_config

GIB = 2**30


@dataclass
class Size:
    """A model's parameters: all of them, those that are trained, and what both depend on."""

    total: int
    trained: int
    config: object


def size_of(config, request) -> Size:
    """Count a model's parameters by building it without memory, and an adapter's that the request adds."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=request.trust_remote_code)
        total = trained = model.num_parameters()
        if request.use_peft:
            import peft

            adapter = get_peft_config(request)
            if len(adapter.target_modules or ()) == 1:  # a name such as `all-linear`, as TRL's ModelConfig takes it
                (adapter.target_modules,) = adapter.target_modules
            trained, total = peft.get_peft_model(model, adapter).get_nb_trainable_parameters()
    return Size(total, trained, config)


def compute_dtype(request) -> str:
    """What a training computes in: `fp16`, `fp32`, or `bf16`, which is TRL's default where neither is said."""
    if request.fp16:
        return "fp16"
    return "fp32" if request.bf16 is False else "bf16"


def prompt_tokens(tokenizer, prompts: list) -> list[int]:
    """The prompts' lengths in tokens.

    A chat template stands around each alike, so it is rendered once: thousands of times would take seconds.
    """
    if isinstance(prompts[0], str):
        return list(map(len, tokenizer(prompts)["input_ids"]))
    around = tokenizer.apply_chat_template(prompts[0], add_generation_prompt=True, tokenize=True, return_dict=False)
    texts = [prompt[-1]["content"] for prompt in prompts]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return [length + len(around) - lengths[0] for length in lengths]


def long_prompts(tokenizer, prompts: list, share: float = 0.03, at_least: int = 200) -> tuple[int, int]:
    """Tokens of the longest prompt, and of one that 99 % are no longer than.

    Of many prompts only those with the most characters are tokenized, which are the ones in question.
    """
    first = prompts[0]
    count = max(at_least, round(share * len(prompts)))
    longest = sorted(prompts, key=lambda prompt: -len(prompt if isinstance(prompt, str) else prompt[-1]["content"]))
    lengths = sorted(prompt_tokens(tokenizer, [first, *longest[:count]])[1:], reverse=True)
    return lengths[0], lengths[len(prompts) // 100]


def memory(size: Size, request, sharding: str, processes: int, prompt: int, accumulation: int) -> dict[str, float]:
    """Bytes on each process, by part.

    Args:
        size: see `size_of`.
        sharding: `none`, `zero1`, `zero2`, `zero3` or `fsdp`.
        processes: those that it is sharded over.
        prompt: tokens of a long prompt.
        accumulation: micro-batches a step, all of whose completions are generated at once.

    Returns:
        `weights`, `gradients`, `optimizer`, `activations`, `logits`, unless vLLM generates `cache`, and under ZeRO-3
        `gathered`, the whole weights to generate with; and `peak`: the first three with the larger of generation
        (cache, gathered, its logits) and backward pass (activations, its logits).
    """
    config = size.config.get_text_config()
    deepspeed, half = sharding.startswith("zero"), compute_dtype(request) != "fp32"
    stored = 2 if request.dtype in ("bfloat16", "float16") else 4
    # Mixed precision (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1): DeepSpeed keeps 16-bit weights and
    # gradients and fp32 master weights in its optimizer; autocast keeps fp32 ones and 16-bit copies.
    weight, gradient, state = (2, 2, 12) if deepspeed and half else (stored, stored, 8)
    if "8bit" in request.optim:
        state -= 6
    if request.use_peft:
        weight = stored
    split = {
        "weights": processes if sharding in ("zero3", "fsdp") else 1,
        "gradients": processes if sharding in ("zero2", "zero3", "fsdp") else 1,
        "optimizer": processes if sharding != "none" else 1,
    }
    parts = {
        "weights": size.total * weight / split["weights"] + (2 * size.total if half and not deepspeed else 0),
        "gradients": size.trained * gradient / split["gradients"],
        "optimizer": size.trained * state / split["optimizer"],
    }
    if sharding == "none" and processes > 1:
        parts["gradients"] *= 2  # DDP's buckets, which it reduces

    number = 2 if half else 4
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    # A layer's activations a token, after Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), whose 34 bytes a
    # hidden unit are 18 for attention and norms, and 4 numbers a unit of the gated feed-forward; attention scores are
    # not kept. With checkpointing only each layer's input, and one layer at a time.
    of_layer = hidden * 9 * number + 4 * inner * number
    completion = request.max_completion_length
    tokens = request.per_device_train_batch_size * (prompt + completion)
    if request.gradient_checkpointing or getattr(request, "activation_checkpointing", False):
        parts["activations"] = tokens * (layers * hidden * 4 + of_layer)
    else:
        parts["activations"] = tokens * layers * of_layer
    # TRL's fused head makes a tile of the logits at a time (trl/kernels/chunked_logprob.py), and in the backward pass
    # an fp32 gradient of its own weights.
    scored = min(request.per_device_train_batch_size * (completion + 1), 4096)
    training = scored * min(config.vocab_size, 32768) * number + config.vocab_size * hidden * 4
    generation = {}
    if not request.use_vllm:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        together = request.per_device_train_batch_size * (request.steps_per_generation or accumulation)
        parts["cache"] = generation["cache"] = together * (prompt + completion) * 2 * layers * heads * head * number
        # A word's logit and score in fp32, its probability, and the running sum in double: shared_prompts.draw.
        generation["logits"] = together * config.vocab_size * (4 + 4 + 4 + 8)
        if sharding == "zero3" and request.ds3_gather_for_generation:
            parts["gathered"] = generation["gathered"] = size.total * weight
    parts["logits"] = max(training, generation.get("logits", 0))
    fixed = parts["weights"] + parts["gradients"] + parts["optimizer"]
    return {**parts, "peak": fixed + max(sum(generation.values()), parts["activations"] + training)}


def checkpoint_bytes(size: Size) -> tuple[int, int]:
    """A checkpoint's bytes and the final model's: fp32 weights, and in a checkpoint AdamW's two moments in fp32."""
    weights = 4 * (size.trained if size.trained < size.total else size.total)
    return weights + 8 * size.trained, weights
