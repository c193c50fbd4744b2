"""Leave padding out of the forward and backward pass.

TRL pads every micro-batch to the longest completion of the whole generation batch, and shuffles, so that most of a
micro-batch is padding where lengths differ. Sorted by length, and cut to its own longest completion, a micro-batch has
hardly any. The gradient is the same sum in another order.
"""

import torch


def longest_first(batch: dict) -> dict:
    """Order a generation batch by completion length, in place of TRL's `shuffle_sequence_dict`.

    The longest micro-batch comes first: one that does not fit the memory fails in the first step, not in the last.
    """
    order = batch["completion_mask"].sum(dim=1).argsort(descending=True, stable=True)

    def arrange(values):
        if values is None or (isinstance(values, torch.Tensor) and values.ndim == 0):
            return values
        return values[order] if isinstance(values, torch.Tensor) else [values[index] for index in order]

    return {name: arrange(values) for name, values in batch.items()}


def trim(batch: dict) -> dict:
    """Cut the columns of a micro-batch in which no row has a token: prompts on the left, completions on the right.

    Args:
        batch: TRL's inputs of `GRPOTrainer.compute_loss`; `prompt_mask` and `completion_mask` of shape (rows, tokens),
            everything else of one of those shapes is cut alike.
    """
    prompt, completion = batch["prompt_mask"], batch["completion_mask"]
    first = int(prompt.any(dim=0).int().argmax())
    last = int(completion.any(dim=0).sum().clamp(min=1))
    trimmed = {}
    for name, values in batch.items():
        if isinstance(values, torch.Tensor) and name.startswith("prompt_"):
            values = values[:, first:]
        elif isinstance(values, torch.Tensor) and values.ndim == 2 and values.shape == completion.shape:
            values = values[:, :last]
        trimmed[name] = values
    return trimmed
