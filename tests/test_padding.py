"""Padding is left out of a step, and the optimisation stays the same."""

import pytest
import torch
from conftest import steps, weights
from trl import GRPOTrainer

import rl_grpo
from r1zero import padding
from r1zero.trainer import Trainer


def batch(lengths: list[int], prompts: list[int], width: int = 9, prompt_width: int = 7) -> dict:
    rows = len(lengths)
    completion = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
    prompt = torch.tensor([[0] * (prompt_width - length) + [1] * length for length in prompts])
    return {
        "prompt_ids": torch.arange(rows * prompt_width).reshape(rows, -1), "prompt_mask": prompt,
        "completion_ids": torch.arange(rows * width).reshape(rows, -1), "completion_mask": completion,
        "old_per_token_logps": torch.rand(rows, width), "advantages": torch.arange(rows) / 10,
        "num_items_in_batch": torch.tensor(float(sum(lengths))), "nothing": None,
        "names": [f"row {number}" for number in range(rows)],
    }  # fmt: skip


def test_a_micro_batch_is_cut_to_its_own_longest_rows():
    before = batch([3, 5, 2], [4, 2, 4])
    after = padding.trim(before)
    assert after["completion_ids"].shape == after["old_per_token_logps"].shape == (3, 5)
    assert after["prompt_ids"].shape == after["prompt_mask"].shape == (3, 4)
    for name, cut in (("completion_ids", slice(0, 5)), ("prompt_ids", slice(3, 7))):
        assert torch.equal(after[name], before[name][:, cut])
    assert after["completion_mask"].sum() == before["completion_mask"].sum()
    assert after["prompt_mask"].sum() == before["prompt_mask"].sum()
    for name in ("advantages", "num_items_in_batch", "nothing", "names"):
        assert after[name] is before[name]


def test_rows_that_are_masked_altogether_leave_something_to_compute():
    """As with mask_truncated_completions, where all of a micro-batch were cut off."""
    after = padding.trim(batch([0, 0], [2, 7]))
    assert after["completion_ids"].shape == (2, 1) and after["prompt_ids"].shape == (2, 7)


def test_the_longest_come_first_and_every_column_goes_along():
    parts = [batch([3, 5], [1, 2]), batch([2, 5], [3, 4])]
    parts[1]["advantages"] += 0.2
    parts[1]["names"] = ["row 2", "row 3"]
    first, second = padding.longest_first(parts)
    assert [part["completion_mask"].sum(dim=1).tolist() for part in (first, second)] == [[5, 5], [3, 2]]
    assert first["names"] + second["names"] == ["row 1", "row 3", "row 0", "row 2"]
    assert first["prompt_mask"].sum(dim=1).tolist() == [2, 4]
    assert second["advantages"].tolist() == pytest.approx([0.0, 0.2])
    assert first["num_items_in_batch"] == 8 and first["nothing"] is None


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_lengths_stay_a_multiple_that_is_set(multiple):
    cut = padding.trim(batch([3, 5, 2], [4, 2, 4], width=16, prompt_width=16), multiple)
    assert cut["completion_ids"].shape[1] == -(-5 // multiple) * multiple
    assert cut["prompt_ids"].shape[1] == -(-4 // multiple) * multiple


def test_the_optimisation_is_that_of_trl(arguments, model, tmp_path, monkeypatch):
    """Three updates of plain SGD, with and without. The samples are the same, only the order of the sums changes."""
    shapes = []
    compute = GRPOTrainer.compute_loss

    def see(self, model, inputs, *args, **kwargs):
        shapes.append(inputs["completion_mask"].shape[1])
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", see)
    common = {"optim": "sgd", "learning_rate": "0.1", "max_steps": 3, "max_completion_length": 64,
              "per_device_train_batch_size": 2, "reward_funcs": ["accuracy", "length"]}  # fmt: skip
    rl_grpo.main(arguments(output_dir=tmp_path / "ours", **common))
    ours, shapes[:] = list(shapes), []
    for hook in ("compute_loss", "_prepare_inputs", "_get_per_token_logps_and_entropies"):
        monkeypatch.delattr(Trainer, hook)
    rl_grpo.main(arguments(output_dir=tmp_path / "trl", **common))
    assert sum(ours) < sum(shapes) and len(ours) == len(shapes) == 24
    one, other, start = weights(tmp_path / "ours"), weights(tmp_path / "trl"), weights(model)
    for name, value in one.items():
        moved = (value - start[name]).norm()
        assert (value - other[name]).norm() <= 1e-3 * moved + 1e-7, name
    assert not torch.equal(one["model.norm.weight"], start["model.norm.weight"])
    for a, b in zip(steps(tmp_path / "ours"), steps(tmp_path / "trl"), strict=True):
        assert a["reward"] == pytest.approx(b["reward"]) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
