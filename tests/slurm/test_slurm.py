"""The real batch script on a private SLURM of two nodes: how people run it, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster
import psutil
import pytest
from conftest import PATIENCE, ROOT, environment, equal, steps, training_arguments, weights

from r1zero import checkpoints

SCRIPT = "run_rl_grpo.cardinal.slurm"
GOING = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING")
REASON = cluster.unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The cluster; what it has started is gone afterwards."""
    running = cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        running.start()
        yield running
    finally:
        running.stop()
    left = [process for process in psutil.process_iter(["environ"]) if in_cluster(process, running)]
    assert not left, left


def in_cluster(process, running) -> bool:
    return (process.info["environ"] or {}).get("SLURM_CONF") == running.environment["SLURM_CONF"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The repository as a user has it, in a folder with a space, where jobs write their logs."""
    folder = tmp_path_factory.mktemp("a user") / "mini r1 zero"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".sh", ".slurm", ".txt") or path.name in ("configs", "r1zero"):
            (folder / path.name).symlink_to(path)
    (folder / "logs").mkdir()
    return folder


class Job:
    """A submitted job: its number and its log."""

    def __init__(self, slurm, repository, options: list, arguments: list, **variables):
        self.slurm = slurm
        variables = {"NUM_PROCESSES": "1", "CONFIG": "configs/toy.yaml", **slurm.environment, **variables}
        path = f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"
        variables |= {"PATH": path, "PYTHONPATH": str(ROOT / "tests")}
        result = subprocess.run(
            ["sbatch", "--parsable", *options, SCRIPT, *map(str, arguments)],
            cwd=repository, env=environment(**variables), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        self.number = result.stdout.strip()
        self.log = repository / "logs" / f"mini-r1-zero-{self.number}.out"

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, pattern: str) -> None:
        """Until its log has the pattern."""
        until = time.monotonic() + PATIENCE
        while not re.search(pattern, self.said()):
            state = self.slurm.job(self.number)["JobState"]
            assert time.monotonic() < until and state in GOING, (
                f"{state}, without {pattern!r} in its log:\n{self.said()[-3000:]}"
            )
            time.sleep(0.2)

    def end(self) -> dict[str, str]:
        """Until it has ended; what SLURM then says of it."""
        until = time.monotonic() + PATIENCE
        while (job := self.slurm.job(self.number))["JobState"] in GOING:
            assert time.monotonic() < until, f"{job['JobState']} after {PATIENCE} s:\n{self.said()[-3000:]}"
            time.sleep(0.3)
        return job


@pytest.fixture
def submit(slurm, repository, model, data):
    def submit(run, *options, max_steps=6, **overrides) -> Job:
        arguments = training_arguments(
            model_name_or_path=model, dataset_name=data, output_dir=run, reward_funcs=["accuracy", "paced.letters"],
            eval_strategy="no", validation_size=0, max_steps=max_steps, save_steps=100, **overrides,
        )  # fmt: skip
        options = ["--gpus-per-node=1", "--cpus-per-task=2", *options]  # jobs share the nodes
        return Job(slurm, repository, options, arguments)

    return submit


def test_two_jobs_on_two_nodes_at_once_and_the_one_that_runs_out_of_time_goes_on_by_itself(submit, slurm, tmp_path):
    straight = submit(tmp_path / "a straight run", "--nodes=2", max_steps=100)
    # SLURM looks every 30 s and sends a signal up to 30 s early: here 5 to 35 s after the start. 100 steps take longer.
    requeued = submit(tmp_path / "a requeued run", "--nodes=2", "--time=5", "--signal=B:USR1@265", max_steps=100)
    requeued.wait_for("goes back into the queue")
    slurm.command("scontrol", "update", f"JobId={requeued.number}", "TimeLimit=30")  # the next start may finish
    jobs = {"straight": straight.end(), "requeued": requeued.end()}
    for name, job in (("straight", straight), ("requeued", requeued)):
        assert jobs[name]["JobState"] == "COMPLETED" and jobs[name]["NumNodes"] == "2", job.said()[-3000:]
        port = 10000 + int(job.number)
        assert f"on 2 × cpu on 2 nodes, meeting at 127.0.0.1:{port}" in job.said()
        assert "= 8 × 2 processes × 1 accumulation steps" in job.said()
        assert "Traceback" not in job.said()
        assert job.said().count("finished 100 steps") == 1

    said = requeued.said()
    assert jobs["requeued"]["Restarts"] == "1"
    assert re.search(r"stopped by SIG\w+ after step (\d+) of 100; checkpoint-\1 is complete", said)
    assert said.count("resumed from checkpoint-") == 1
    runs = [tmp_path / "a straight run", tmp_path / "a requeued run"]
    assert len(steps(runs[0])) == 100
    assert steps(runs[0]) == steps(runs[1])
    assert equal(weights(runs[0]), weights(runs[1]))


def test_a_cancelled_job_leaves_a_run_that_the_same_command_resumes(submit, tmp_path):
    run = tmp_path / "run"
    job = submit(run, max_steps=60)
    job.wait_for(r"\b2/60\b")
    job.slurm.command("scancel", job.number)
    assert job.end()["JobState"] == "CANCELLED"
    step = checkpoints.sealed_step(checkpoints.last_complete(run)[0])
    assert f"after step {step} of 60; checkpoint-{step} is complete" in job.said()
    assert "Traceback" not in job.said()

    again = submit(run, max_steps=step + 1)
    assert again.end()["JobState"] == "COMPLETED", again.said()[-3000:]
    assert f"resumed from checkpoint-{step}" in again.said() and "on 1 × cpu\n" in again.said()
    assert [entry["step"] for entry in steps(run)] == list(range(1, step + 2))


def test_a_bad_recipe_ends_the_job_with_one_line(submit, tmp_path):
    job = submit(tmp_path / "run", "--nodes=2", num_generatoins=4)
    ended = job.end()
    assert ended["JobState"] == "FAILED"
    lines = [line for line in job.said().splitlines() if line and not line.startswith(("==", "srun:", "slurmstepd"))]
    assert lines and all("did you mean --num_generations?" in line for line in lines), job.said()


def test_a_task_that_dies_ends_the_job(submit, tmp_path):
    job = submit(tmp_path / "run", "--nodes=2", max_steps=200)
    job.wait_for(r"\b2/200\b")
    second = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if in_cluster(process, job.slurm) and process.info["environ"].get("RANK") == "1"
    ]
    for process in second:
        os.kill(process.pid, signal.SIGKILL)
    assert job.end()["JobState"] == "FAILED"


def test_more_than_one_task_a_node_is_refused(submit, tmp_path):
    job = submit(tmp_path / "run", "--ntasks-per-node=2")
    assert job.end()["ExitCode"] == "2:0"
    assert "2 tasks on 1 nodes: start one per node" in job.said()


def test_submitted_from_elsewhere_it_says_so(slurm, repository, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / SCRIPT).symlink_to(ROOT / SCRIPT)
    job = Job(slurm, tmp_path, ["--gpus-per-node=1", "--cpus-per-task=1"], [])
    assert job.end()["ExitCode"] == "2:0"
    assert f"there is no rl_grpo.sh in {tmp_path}; run sbatch in the repository's folder" in job.said()
