"""Nothing is lost: what counts as a checkpoint, and trainings that are killed, again and again, or run out of disk."""

import json
import random
import re
import shutil
import subprocess
import sys

import pandas
import pytest
from conftest import PATIENCE, ROOT, environment, equal, launch, logs, steps, training_arguments, weights

import rl_grpo
from r1zero import checkpoints


def make_checkpoint(folder, sealed: bool = True):
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "model.safetensors").write_bytes(b"weights")
    (folder / "trainer_state.json").write_text("{}")
    if sealed:
        checkpoints.seal(folder, int(folder.name.rpartition("-")[2]))
    return folder


# What counts -----------------------------------------------------------------------------------------------


def test_a_checkpoint_counts_only_as_it_was_sealed(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-8")
    assert checkpoints.sealed_step(folder) == 8
    (folder / "below" / "model.safetensors").write_bytes(b"weigh")  # cut off
    assert checkpoints.sealed_step(folder) is None
    (folder / "below" / "model.safetensors").unlink()
    assert checkpoints.sealed_step(folder) is None
    for content in ("", '{"step": 8, "files"', "[]", '{"step": 8}', '{"step": 8, "files": {}}', "\x00"):
        (folder / checkpoints.SEAL).write_text(content)
        assert checkpoints.sealed_step(folder) is None
    assert checkpoints.sealed_step(tmp_path / "nowhere") is None


def test_the_last_whole_checkpoint_is_resumed_and_later_ones_are_named(tmp_path):
    assert checkpoints.last_complete(tmp_path) == (None, [])
    for step, sealed in ((2, True), (10, True), (20, False), (100, False)):
        make_checkpoint(tmp_path / f"checkpoint-{step}", sealed)
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.last_complete(tmp_path) == (tmp_path / "checkpoint-10", ["checkpoint-100", "checkpoint-20"])


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_old_checkpoints_go_only_when_the_new_one_is_whole(tmp_path):
    for step in (2, 6):
        make_checkpoint(tmp_path / f"checkpoint-{step}")
    checkpoints.begin(tmp_path / "checkpoint-4")  # its save was interrupted
    new = make_checkpoint(tmp_path / "checkpoint-8", sealed=False)
    checkpoints.finish(new, 8, limit=2, best=None)
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-8"]
    new = make_checkpoint(tmp_path / "checkpoint-10", sealed=False)
    checkpoints.finish(new, 10, limit=1, best=str(tmp_path / "checkpoint-6"))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-6"]


def test_a_checkpoint_that_a_user_or_trl_put_there_is_never_deleted(tmp_path):
    make_checkpoint(tmp_path / "checkpoint-7", sealed=False)
    make_checkpoint(tmp_path / "checkpoint-9", sealed=False)
    make_checkpoint(tmp_path / "checkpoint-8")
    checkpoints.begin(tmp_path / "checkpoint-9")  # the run reaches that step as well: theirs is moved aside
    checkpoints.finish(make_checkpoint(tmp_path / "checkpoint-10", sealed=False), 10, limit=1, best=None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-7", "checkpoint-9.old-1"]
    for name in ("checkpoint-7", "checkpoint-9.old-1"):
        assert (tmp_path / name / "below" / "model.safetensors").read_bytes() == b"weights"
    assert checkpoints.last_complete(tmp_path)[0].name == "checkpoint-10"


def test_a_cut_off_checkpoint_is_passed_over_and_the_run_says_so(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    rl_grpo.main(arguments(max_steps=4, save_steps=2))
    straight, metrics = weights(run), logs(run)
    optimizer = run / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    (run / "model.safetensors").write_bytes(b"half a model")  # the end of the run as well
    capsys.readouterr()
    rl_grpo.main(arguments(max_steps=4, save_steps=2))
    said = capsys.readouterr().out
    assert "resumed from checkpoint-2" in said
    assert "warning  directory: checkpoint-4: incomplete, its save was interrupted; resuming" in said
    assert equal(weights(run), straight) and logs(run) == metrics
    assert checkpoints.sealed_step(run / "checkpoint-4") == 4


# Killed ----------------------------------------------------------------------------------------------------


def run_forked(plan: list[dict], tmp_path) -> list[dict]:
    """Carry a plan out, see forked.py."""
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    command = [sys.executable, ROOT / "tests" / "forked.py", file]
    result = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def tables(run) -> pandas.DataFrame:
    """Every completion that a run kept."""
    files = [*sorted((run / "completions").iterdir()), *sorted((run / "validation").iterdir())]
    return pandas.concat(pandas.read_parquet(file).astype(str) for file in files)


RUNS, KILLS = 7, 4  # of each run


def test_killed_at_any_moment_the_same_command_ends_as_if_it_had_not_been(model, data, tmp_path):
    """At seeded moments: the opening of a file of the run, or a little later; saves are most of such a short run."""
    rng = random.Random(0)

    def arguments(run):
        return training_arguments(
            model_name_or_path=model, dataset_name=data, output_dir=run, validation_size=8, max_steps=6,
            save_steps=1, save_total_limit=1, eval_strategy="steps", eval_steps=2, eval_on_start="true",
            per_device_eval_batch_size=8, num_generations_eval=1, per_device_train_batch_size=16,
        )  # fmt: skip

    straight = tmp_path / "straight"
    plan = [{"arguments": arguments(straight)}]
    for number in range(RUNS):
        for _ in range(KILLS):
            seconds = rng.choice([0, 0, 0.001, 0.003, 0.01, 0.05])
            plan.append({"arguments": arguments(tmp_path / f"run-{number}"), "kill_at": [rng.randint(1, 30), seconds]})
        plan.append({"arguments": arguments(tmp_path / f"run-{number}")})
    ends = run_forked(plan, tmp_path)

    assert ends[0]["status"] == 0, ends[0]["said"][-2000:]
    killed = [end for end, start in zip(ends, plan, strict=True) if "kill_at" in start]
    assert {end["status"] for end in killed} <= {-9, 0}, [end["said"][-500:] for end in killed]
    assert sum(end["status"] == -9 for end in killed) >= 20
    for end in ends:
        assert "Traceback" not in end["said"], end["said"][-2000:]
    said = "".join(end["said"] for end in ends)
    assert "resumed from checkpoint-" in said and "its save was interrupted" in said  # some were killed in a save
    for number in range(RUNS):
        run = tmp_path / f"run-{number}"
        assert equal(weights(straight), weights(run))
        assert logs(straight) == logs(run)
        assert tables(straight).equals(tables(run))
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-6"]


def test_two_processes_killed_in_a_save_end_with_the_same_metrics(model, data, tmp_path):
    """Rank 0 has written its part, and rank 1 has not: to transformers that is a checkpoint."""
    runs = {name: tmp_path / name for name in ("straight", "killed")}
    topology = ["--config_file", ROOT / "configs" / "accelerate" / "cpu.yaml", "--num_processes", "2"]

    def train(run, **variables):
        arguments = training_arguments(
            model_name_or_path=model, dataset_name=data, output_dir=run, max_steps=4, save_steps=2,
            save_total_limit=1, reward_funcs=["accuracy", "dying.nothing"],
        )  # fmt: skip
        command = ["accelerate", "launch", *topology, "--main_process_port", "0", "rl_grpo.py", *arguments]
        return launch(*command, PYTHONPATH=str(ROOT / "tests"), **variables)

    assert train(runs["straight"]).returncode == 0
    result = train(runs["killed"], DIE_IN_SAVE_OF="checkpoint-4")
    assert result.returncode != 0
    assert {path.name for path in runs["killed"].glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert (runs["killed"] / "checkpoint-4" / "trainer_state.json").is_file()
    result = train(runs["killed"])
    assert result.returncode == 0, result.stderr[-2000:]
    assert "resumed from checkpoint-2" in result.stdout and "checkpoint-4: incomplete" in result.stdout
    assert steps(runs["straight"]) == steps(runs["killed"])
    assert equal(weights(runs["straight"]), weights(runs["killed"]))


# A full disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1000, 200_000])  # not even the weights; the weights, but not the optimizer
def test_a_full_disk_in_a_save_leaves_the_checkpoint_before_and_says_so(model, data, tmp_path, room):
    def arguments(run):
        return training_arguments(
            model_name_or_path=model, dataset_name=data, output_dir=run, max_steps=4, save_steps=2,
            save_total_limit=1, log_completions="false",
        )  # fmt: skip

    run = tmp_path / "run"
    straight, full, after = run_forked(
        [
            {"arguments": arguments(tmp_path / "straight")},
            {"arguments": arguments(run), "room_at": "checkpoint-4", "room": room},
            {"arguments": arguments(run)},
        ],
        tmp_path,
    )
    assert straight["status"] == 0
    assert full["status"] == 1 and "Traceback" not in full["said"], full["said"][-2000:]
    line = r"the disk is full \(.* GB free\): .*Make room: .*checkpoint-2 is complete, and the same command continues"
    assert re.search(line, full["said"])
    assert after["status"] == 0 and "resumed from checkpoint-2" in after["said"]
    assert equal(weights(tmp_path / "straight"), weights(run))
    assert logs(tmp_path / "straight") == logs(run)


def test_a_disk_with_no_room_for_a_checkpoint_is_refused_and_with_little_warned_of(arguments, capsys, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(SystemExit):
        rl_grpo.main(arguments())
    assert re.search(
        r"0.0 GB are free for .*/run, but a checkpoint \(0.0 GB\) .* on another disk", capsys.readouterr().err
    )
    rl_grpo.main([*arguments(save_strategy="no"), "--preflight"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=800_000))
    rl_grpo.main([*arguments(), "--preflight"])
    assert "warning  disk: " in capsys.readouterr().out
