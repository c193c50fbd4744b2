"""Read a group's prompt once: its completions differ, the keys and values of its prompt do not.

TRL gives a model each prompt as often as it has completions, in generation and again in forward and backward pass.
Here the model reads each distinct prompt once, and the completions go on from its cache: the same numbers and the same
gradients but for rounding. And a completion that is finished leaves the batch, where `generate` would pad it until the
longest is finished too.
"""

import functools
import inspect

import torch
from peft import PeftModel
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations import is_deepspeed_zero3_enabled

FINISHED_SHARE = 1 / 8  # of a batch's rows, before the finished ones are taken out: that copies the cache


def can_share(model) -> bool:
    """Whether a model can go on from a cache of prompts: one that keeps plain keys and values of every token.

    One with sliding windows does not, and one of images and text needs more than tokens.
    """
    layers = DynamicCache(config=model.config).layers
    return (
        model.config.get_text_config() is model.config
        and "position_ids" in inspect.signature(model.forward).parameters
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
    )


def share(trainer) -> None:
    """Let a `rl_grpo.Trainer` read its prompts once where its model can.

    Not where processes hold a part of the weights each: they must call the model equally often. In generation not where
    another method or another cache was asked for.
    """
    model = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
    if not can_share(model) or is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled:
        return
    trainer.shares_prompts = True
    if not trainer.use_vllm:
        config = trainer.generation_config
        samples = config.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
        if samples and config.cache_implementation is None:
            trainer.model.generate = functools.partial(trainer.model.generate, custom_generate=sample)


def read_prompts(model, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> DynamicCache:
    """Run a model over the distinct prompts of a batch, all but their last token.

    Args:
        model: a causal language model, wrapped for its processes or not.
        ids, mask, positions: of shape (rows, prompt tokens), padded on the left.

    Returns:
        The cache of all rows, with the graph that gradients flow back through.
    """
    if ids.size(1) == 1:
        return DynamicCache()
    _, which = torch.where(mask.bool(), ids, -1).unique(dim=0, return_inverse=True)
    rows = torch.arange(len(which), device=which.device)
    first = rows.new_full((int(which.max()) + 1,), len(rows)).scatter_reduce(0, which, rows, "amin")
    cache = model(
        input_ids=ids[first, :-1], attention_mask=mask[first, :-1], position_ids=positions[first, :-1],
        use_cache=True, logits_to_keep=1,
    ).past_key_values  # fmt: skip
    cache.batch_select_indices(which)
    return cache


class Scoring:
    """A model that scores completions, as `GRPOTrainer._get_per_token_logps_and_entropies` calls it.

    Args:
        model: the model with TRL's fused head, wrapped for its processes or not.
        prompt_length: tokens of a prompt, padded.
    """

    def __init__(self, model, prompt_length: int):
        self.model = model
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **kwargs):
        """As the model's own, but that what is returned begins with the prompts' last token."""
        end, last = self.prompt_length, self.prompt_length - 1
        positions = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
        cache = read_prompts(self.model, input_ids[:, :end], attention_mask[:, :end], positions[:, :end])
        return self.model(
            input_ids=input_ids[:, last:], attention_mask=attention_mask, labels=labels[:, last:],
            position_ids=positions[:, last:], past_key_values=cache, **kwargs,
        )  # fmt: skip


def sample(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs) -> torch.Tensor:
    """Sample completions; a decoding method for `generate(custom_generate=…)`, in place of transformers' `_sample`.

    Args:
        model: a causal language model for which `can_share` holds.
        input_ids: of shape (rows, prompt tokens), padded on the left.
        logits_processor, stopping_criteria, generation_config: what `generate` has made of its arguments.
        inputs: of the model, among them `position_ids` and `attention_mask`, which is None where all are ones.

    Returns:
        Prompts and completions, of shape (rows, tokens of the longest), padded on the right.
    """
    ids, positions, mask = input_ids, inputs["position_ids"], inputs["attention_mask"]
    if mask is None:
        mask = torch.ones_like(ids)
    cache = read_prompts(model, ids, mask, positions)
    sequences = ids.new_full((len(ids), stopping_criteria.max_length), int(generation_config._pad_token_tensor))
    rows = torch.arange(len(ids), device=ids.device)  # those still in the batch, of which some may be finished
    finished = torch.zeros_like(rows, dtype=torch.bool)
    while not finished.all():
        if finished.sum() >= FINISHED_SHARE * len(rows):
            stay = (~finished).nonzero()[:, 0]
            ids, mask, positions, rows, finished = (each[stay] for each in (ids, mask, positions, rows, finished))
            cache.batch_select_indices(stay)
        logits = model(
            input_ids=ids[:, -1:], attention_mask=mask, position_ids=positions[:, -1:], past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]  # fmt: skip
        scores = logits_processor(ids, logits.float())
        tokens = draw(scores) if generation_config.do_sample else scores.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, tokens], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = positions[:, -1:] + 1
        now = stopping_criteria(ids, scores) & ~finished
        sequences[rows[now], : ids.size(1)] = ids[now]
        finished |= now
    return sequences[:, : ids.size(1)]


def draw(scores: torch.Tensor) -> torch.Tensor:
    """Draw a token a row from the softmax of its scores, by the inverse of the cumulative distribution.

    `torch.multinomial` draws the same with a random number for each word of the vocabulary, which on a CPU takes as
    long as all matrix products of a small model. The sum is in double precision, so that no word's share of it is lost.

    Args:
        scores: of shape (rows, vocabulary).

    Returns:
        Of shape (rows, 1).
    """
    cumulative = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.double)
    thresholds = torch.rand(len(scores), 1, dtype=torch.double, device=scores.device) * cumulative[:, -1:]
    # Rounding may bring a threshold up to the sum itself, one time in 2^53.
    return torch.searchsorted(cumulative, thresholds, right=True).clamp(max=scores.size(1) - 1)
