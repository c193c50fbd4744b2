"""Sample completions, and read each prompt of a group only once.

TRL gives a model each prompt as often as it has completions, in generation and again in the forward and backward pass.
Here the model reads each distinct prompt once, and the completions continue from its cache: the same numbers and
gradients up to rounding. In generation a finished completion leaves the batch, where `generate` would pad it until the
longest one is finished.
"""

import inspect
from contextlib import contextmanager

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

FINISHED_SHARE = 1 / 8  # of a batch's rows, before the finished ones are removed, which copies the cache


def can_share(model) -> bool:
    """Whether a model can continue from a cache of prompts: not with sliding windows, and not with images."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter's
    layers = DynamicCache(config=model.config).layers
    return (
        model.config.get_text_config() is model.config
        and "position_ids" in inspect.signature(model.forward).parameters
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
    )


@contextmanager
def weights_as(model, dtype: torch.dtype | None):
    """Give a model copies of its fp32 weights in another type, and the fp32 ones back at the end.

    Autocast would convert every weight again for each token, and keep the KV cache in fp32: keys leave the rotary
    embedding in the type of the hidden states. The copies cost 2 bytes per parameter, only during generation. They are
    new parameters and not new `.data`, which would detach the hooks that DDP keeps on the original ones.

    Args:
        model: not wrapped for its processes.
        dtype: None leaves the model as it is.
    """
    modules = model.modules() if dtype is not None else ()
    originals = [(module, name, weight) for module in modules for name, weight in module._parameters.items()]
    originals = [original for original in originals if getattr(original[2], "dtype", None) == torch.float32]
    copies = {weight: torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False) for _, _, weight in originals}
    for module, name, weight in originals:
        setattr(module, name, copies[weight])  # tied weights stay tied
    try:
        yield
    finally:
        for module, name, weight in originals:
            setattr(module, name, weight)


def generate(model, tokenizer, prompts: list[list[int]], config) -> list[list[int]]:
    """Sample completions for tokenized prompts.

    Args:
        model: a causal language model, not wrapped for its processes.
        tokenizer: for its pad token.
        prompts: token ids.
        config: transformers' `GenerationConfig`.

    Returns:
        Token ids of `config.num_return_sequences` completions per prompt, each with its end token if there is one.
    """
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    method = sample if can_share(model) else None
    with torch.no_grad():
        output = model.generate(**padded, generation_config=config, custom_generate=method)
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id)
    completions = output[:, padded["input_ids"].size(1) :].tolist()
    return [ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))] for ids in completions]


def read_prompts(model, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> DynamicCache:
    """Run a model over the distinct prompts of a batch, all but their last token.

    Args:
        model: a causal language model, wrapped for its processes or not.
        ids, mask, positions: shape (rows, prompt tokens), padded on the left.

    Returns:
        The cache of all rows, with the graph for the gradients.
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
        model: with TRL's fused head, wrapped for its processes or not.
        prompt_length: tokens of a padded prompt.
    """

    def __init__(self, model, prompt_length: int):
        self.model, self.prompt_length = model, prompt_length

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **kwargs):
        """As the model itself, except that the output starts with the last token of the prompts."""
        end, last = self.prompt_length, self.prompt_length - 1
        positions = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
        cache = read_prompts(self.model, input_ids[:, :end], attention_mask[:, :end], positions[:, :end])
        return self.model(
            input_ids=input_ids[:, last:], attention_mask=attention_mask, labels=labels[:, last:],
            position_ids=positions[:, last:], past_key_values=cache, **kwargs,
        )  # fmt: skip


def sample(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs) -> torch.Tensor:
    """A decoding method for `model.generate(custom_generate=…)` that replaces transformers' `_sample`.

    Args:
        model: one that `can_share`.
        input_ids: shape (rows, prompt tokens), padded on the left.
        logits_processor, stopping_criteria, generation_config: as `generate` prepared them.
        inputs: `position_ids`, and `attention_mask`, which is None if all are ones.

    Returns:
        Prompts and completions, shape (rows, tokens of the longest), padded on the right.
    """
    ids, positions, mask = input_ids, inputs["position_ids"], inputs["attention_mask"]
    if mask is None:
        mask = torch.ones_like(ids)
    cache = read_prompts(model, ids, mask, positions)
    sequences = ids.new_full((len(ids), stopping_criteria.max_length), int(generation_config._pad_token_tensor))
    rows = torch.arange(len(ids), device=ids.device)  # still in the batch; some of them may be finished
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
    """Draw one token id per row, shape (rows, 1), from the softmax of scores of shape (rows, vocabulary).

    It inverts the cumulative distribution, in double precision so that no word's probability is lost.
    `torch.multinomial` draws a random number for each word of the vocabulary, which on a CPU takes as long as all
    matrix products of a small model.
    """
    cumulative = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.double)
    thresholds = torch.rand(len(scores), 1, dtype=torch.double, device=scores.device) * cumulative[:, -1:]
    # A threshold may round up to the sum itself, once in 2^53.
    return torch.searchsorted(cumulative, thresholds, right=True).clamp(max=scores.size(1) - 1)
