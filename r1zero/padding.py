"""Leave padding out of the forward and backward pass.

TRL pads each micro-batch to the longest completion of the generation batch and shuffles, so most of it is padding
where lengths differ. Sorted by length and cut to its own longest completion, a micro-batch has hardly any. The gradient
is the same sum in another order.
"""

import torch
from trl.trainer.utils import split_tensor_dict


def longest_first(batches: list[dict]) -> list[dict]:
    """Distribute the rows of a generation batch over its micro-batches, longest completions first.

    A micro-batch that does not fit the memory then fails in the first step, not in the last.

    Args:
        batches: TRL's micro-batches: dicts of tensors, lists, scalars and None, with equal keys and padded lengths.
    """
    order = torch.cat([batch["completion_mask"].sum(dim=1) for batch in batches]).argsort(descending=True, stable=True)

    def arrange(values: list):
        if values[0] is None or getattr(values[0], "ndim", 1) == 0:
            return values[0]
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)[order]
        rows = [row for value in values for row in value]
        return [rows[index] for index in order]

    return split_tensor_dict({name: arrange([batch[name] for batch in batches]) for name in batches[0]}, len(batches))


def trim(batch: dict, multiple: int = 1) -> dict:
    """Cut columns in which no row has a token: prompts on the left, completions on the right.

    Args:
        batch: inputs of `GRPOTrainer.compute_loss`. `prompt_mask` and `completion_mask` have the shape (rows, tokens);
            other tensors of the latter's shape, and those named `prompt_…`, are cut alike.
        multiple: the new lengths are multiples of this, if the old ones are long enough.
    """
    prompt, completion = batch["prompt_mask"], batch["completion_mask"]
    longest = [prompt.size(1) - int(prompt.any(dim=0).int().argmax()), int(completion.any(dim=0).sum().clamp(min=1))]
    first, last = (-(-length // multiple) * multiple for length in longest)
    trimmed = dict(batch)
    for name, values in batch.items():
        if isinstance(values, torch.Tensor) and name.startswith("prompt_"):
            trimmed[name] = values[:, -first:]
        elif isinstance(values, torch.Tensor) and values.shape == completion.shape:
            trimmed[name] = values[:, :last]
    return trimmed
