"""Alarms while training: each once, when it applies, and none for a training that goes well."""

import math

import pytest
from conftest import steps

import rl_grpo
from r1zero import alarms

NAMES = ["accuracy", "format", "reflection", "length"]


def logs(**changed) -> dict:
    healthy = {
        "loss": 0.0, "grad_norm": 0.5, "entropy": 0.5, "frac_reward_zero_std": 0.2, "completions/clipped_ratio": 0.1,
        "completions/mean_length": 100.0, **{f"rewards/{name}/mean": 0.5 for name in NAMES},
    }  # fmt: skip
    return {**healthy, **{key.replace("__", "/"): value for key, value in changed.items()}}


def warnings(*history: dict) -> list[list[str]]:
    """The messages after each of these logging steps."""
    one = alarms.Alarms(NAMES)
    return [[alarm.message for alarm in one.see(entry)] for entry in history]


def test_a_training_that_goes_well_is_left_alone():
    rising = [
        logs(
            rewards__accuracy__mean=0.3 + 0.006 * step, rewards__format__mean=min(1, 0.02 * step), kl=0.002 * step,
            rewards__reflection__mean=0.005 * step, completions__mean_length=100 + 3 * step, entropy=0.5 - 0.004 * step,
            frac_reward_zero_std=step / 100,
        )
        for step in range(100)
    ]  # fmt: skip
    assert not any(warnings(*rising))


@pytest.mark.parametrize(
    ("wrong", "after", "said"),
    [
        ({"rewards__format__mean": 0.0}, 20, "reward format was 0 for every completion of 20 logging steps"),
        ({"rewards__accuracy__mean": 0.0}, 20, "reward accuracy was 0"),
        ({"frac_reward_zero_std": 1.0}, 5, "all completions of every group had the same reward"),
        ({"completions__clipped_ratio": 0.6}, 5, "more than half of the completions are truncated"),
        ({"kl": 1.5}, 5, "more than 1 nats per token away from the reference model"),
        ({"loss": math.nan}, 1, "loss is nan: the weights are or will be NaN"),
        ({"grad_norm": math.inf}, 1, "grad_norm is inf"),
    ],
)
def test_what_goes_wrong_is_said_once_and_with_what_to_do(wrong, after, said):
    found = warnings(*[logs(**wrong)] * 30)
    assert [len(lines) for lines in found] == [int(step == after) for step in range(1, 31)]
    assert said in found[after - 1][0] and "\n" not in found[after - 1][0]


def test_what_does_not_last_is_not_said():
    now_and_then = [logs(completions__clipped_ratio=0.9, kl=2.0, frac_reward_zero_std=1.0), *[logs(kl=0.1)] * 3]
    assert not any(warnings(*now_and_then * 5))
    assert not any(warnings(*[logs(rewards__format__mean=0.0)] * 19, *[logs()] * 20))
    assert not any(warnings(*[logs(rewards__format__mean=None)] * 40))  # it does not apply


def test_entropy_that_collapses():
    found = warnings(*[logs()] * 10, *[logs(entropy=0.01)] * 10)
    assert [len(lines) for lines in found].index(1) == 14
    assert "entropy fell below a tenth" in found[14][0]


@pytest.mark.parametrize(
    ("rising", "what"),
    [({"rewards__reflection__mean": 0.9}, "reflection"), ({"completions__mean_length": 200.0}, "length")],
)
def test_accuracy_that_falls_while_another_reward_rises(rising, what):
    good, bad = logs(rewards__accuracy__mean=0.7), logs(rewards__accuracy__mean=0.4, **rising)
    said = [line for lines in warnings(*[good] * 20, *[bad] * 20) for line in lines]
    assert len(said) == 1 and f"while {what} rose: the model earns the other rewards instead" in said[0]
    # Accuracy that falls by itself is another matter; and more of both is what one wants.
    assert not any(warnings(*[good] * 20, *[logs(rewards__accuracy__mean=0.4)] * 20))
    assert not any(warnings(*[good] * 20, *[logs(rewards__accuracy__mean=0.8, **rising)] * 20))


def test_in_a_real_training_the_warning_comes_with_a_completion_and_not_again_after_a_resume(
    arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(alarms, "START", 3)
    rl_grpo.main(arguments(max_steps=4, save_steps=4))
    said = capsys.readouterr().out
    assert steps(tmp_path / "run")[0]["rewards/format/mean"] == 0  # random weights write no tags
    assert said.count("warning  reward format was 0 for every completion of 3 logging steps") == 1
    assert "\n  │ → " in said.split("reward format was 0")[1]
    assert "near 0 by construction" in said
    rl_grpo.main(arguments(max_steps=6, save_steps=4))
    assert "reward format was 0" not in capsys.readouterr().out
