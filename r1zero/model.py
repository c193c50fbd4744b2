"""The model: its configuration, tokenizer and end tokens, and its precision."""

import json
from pathlib import Path

import huggingface_hub
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from r1zero.data import OFFLINE_FIX, to_prompt
from r1zero.recipe import RequestError
from r1zero.toy import TOY_BASE

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]  # not weights in other formats
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")


def inspect(name: str, prompt_style: str, revision="main", trust_remote_code=False, fetch=False) -> tuple:
    """Read a model's configuration and tokenizer; no weights are loaded.

    `name` is a folder or a name on the hub, `prompt_style` one of `data.to_prompt`. `fetch` also downloads the weights
    into the cache. Returns the configuration, the tokenizer as training uses it, and the ids of the tokens that end a
    completion. RequestError: the model is missing or incomplete, or no completion of it would end.
    """
    folder = Path(name).expanduser()
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if folder.is_dir():
        if missing := missing_weights(folder):
            raise RequestError(f"model folder {name} holds no {missing}")
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):  # transformers would make up an empty one
            raise RequestError(f"model folder {name} holds no tokenizer: tokenizer.save_pretrained puts it there")
    elif name == TOY_BASE:
        raise RequestError(f"there is no model folder {name}: python -m r1zero.toy makes it")
    elif name.startswith((".", "/", "~")):
        raise RequestError(f"there is no model folder {name}")
    try:
        content, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        is_foreign = content.get("model_type") not in CONFIG_MAPPING
        if is_foreign and "auto_map" in {**content, **get_tokenizer_config(name)} and not trust_remote_code:
            fix = "which runs only if you ask for it: --trust_remote_code true"
            raise RequestError(f"model {name} brings its own code, {fix}")
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(name, **source)
        tokenizer = AutoTokenizer.from_pretrained(name, **source, padding_side="left", truncation_side="left")
    except (OSError, ValueError) as error:
        reason = OFFLINE_FIX if offline else str(error).strip().split("\n")[0]
        problem = "is neither a local folder nor found on the hub or in its cache"
        raise RequestError(f"model {name} {problem}: {reason}") from error
    if not folder.is_dir() and (fetch or offline):
        options = {"revision": revision, "allow_patterns": MODEL_FILES, "local_files_only": offline}
        try:
            missing = missing_weights(Path(huggingface_hub.snapshot_download(name, **options)))
        except (OSError, ValueError) as error:
            missing = str(error).strip().split("\n")[0]
        if missing:
            problem = f" is incomplete in the cache: {OFFLINE_FIX}" if offline else f": {missing}"
            raise RequestError(f"model {name}{problem}")
    if prompt_style != "r1_zero" and not tokenizer.chat_template:
        problem = f"the tokenizer of {name} has no chat template, which prompt_style {prompt_style} needs"
        raise RequestError(f"{problem}: use --prompt_style r1_zero")
    try:
        declared = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
    except OSError:  # not every model has one
        declared = config.eos_token_id
    end_token_ids = end_completions(tokenizer, prompt_style, [declared] if isinstance(declared, int) else declared)
    if not end_token_ids:
        fix = "set eos_token in its tokenizer_config.json, or eos_token_id in its generation_config.json"
        raise RequestError(f"{name} has no end-of-sequence token, so no completion would end: {fix}")
    return config, tokenizer, end_token_ids


def missing_weights(folder: Path) -> str | None:
    """The name of a weights file that a model's folder lacks, or None if it is complete."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return next((shard for shard in shards if not (folder / shard).is_file()), None)
    return None if any(folder.glob("*.safetensors")) else "*.safetensors"


def end_completions(tokenizer, style: str, declared: list[int] | None = None) -> list[int]:
    """The ids of the tokens that end a completion, the end-of-text token first; may change the pad token.

    A base model was never taught its chat template: it may end a turn with the template's token (`<|im_end|>`) or with
    the end-of-text token (`<|endoftext|>`), so after a chat prompt either ends a completion. A pad token that is one of
    them would hide the end from a loss that masks padding, so another token pads. `declared` are the end tokens in the
    model's generation config, and `style` is a prompt style, see `data.to_prompt`.
    """
    end_token_ids = list(dict.fromkeys(([tokenizer.eos_token_id] if tokenizer.eos_token else []) + (declared or [])))
    special = tokenizer.added_tokens_decoder
    if style != "r1_zero":
        turn = [*to_prompt("question", "question"), {"role": "assistant", "content": "ANSWER"}]
        after_turn = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("ANSWER")[2]
        first = tokenizer(after_turn, add_special_tokens=False)["input_ids"][:1]
        end_token_ids += [token_id for token_id in first if token_id in special and token_id not in end_token_ids]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in end_token_ids:
        others = [special[token_id].content for token_id in sorted(special) if token_id not in end_token_ids]
        # Without a spare token TRL pads with the end token; GRPO's loss, which masks by length, works with that.
        if spare := [token for token in others if "pad" in token.lower()]:
            tokenizer.pad_token = spare[0]
    return end_token_ids


def compute_dtype(request) -> str:
    """What a training computes in: `fp16`, `fp32`, or `bf16`, TRL's default if neither is set."""
    return "fp16" if request.fp16 else "fp32" if request.bf16 is False else "bf16"


def check_precision(request, plan) -> None:
    """Refuse weights that are trained without an fp32 copy, and a compute type that the GPU lacks."""
    dtype = request.dtype if request.dtype not in (None, "auto") else str(plan.config.dtype or "float32")
    dtype, compute = dtype.removeprefix("torch."), compute_dtype(request)
    has_master = plan.sharding.startswith("zero") and compute != "fp32"
    if dtype in ("bfloat16", "float16") and not request.use_peft and not has_master:
        raise RequestError(
            f"dtype {dtype} keeps no fp32 master copy of the weights: at learning_rate {request.learning_rate:g} "
            "nearly every update rounds to zero; dtype: float32 with bf16: true computes in bf16 as well"
        )
    batches = request.use_transformers_continuous_batching or request.use_transformers_paged
    if batches and compute != "fp32" and not has_master:
        raise RequestError(
            "use_transformers_continuous_batching: TRL converts the trained weights to 16 bits for it, so nearly every "
            "update rounds to zero; the accelerate config zero2.yaml keeps an fp32 master copy, also with one process"
        )
    if compute == "bf16" and not request.preflight:
        if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise RequestError(f"bf16: {torch.cuda.get_device_name()} has no bf16; use --bf16 false")
        if not torch.accelerator.is_available():
            plan.warn("precision", "bf16 on a CPU without bf16 units is several times slower than fp32")
