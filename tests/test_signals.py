"""Signals: all ranks stop after the same step with a checkpoint, and the same command continues."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import PATIENCE, ROOT, environment, equal, steps, weights

import rl_grpo
from r1zero import checkpoints


def wait_for(condition, what: str):
    """Return the first true value of `condition()`."""
    until = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < until, f"waited {PATIENCE} s for {what}"
        time.sleep(0.05)
    return value


def test_ranks_signalled_at_different_moments_stop_at_one_step_and_the_run_goes_on_as_if_it_had_not(
    arguments, tmp_path
):
    """Under ZeRO-3, where each rank holds a part of every weight and of the optimizer; DDP's turn is in tests/slurm."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    variables = environment(
        CONFIG="configs/toy.yaml", NUM_PROCESSES="2", ACCELERATE_CONFIG="configs/accelerate/zero3.yaml",
        PYTHONPATH=str(ROOT / "tests"),
    )  # fmt: skip

    def command(run):
        options = {"reward_funcs": ["accuracy", "paced.letters"], "max_steps": 16, "save_steps": 100}
        return ["bash", "rl_grpo.sh", *arguments(output_dir=run, eval_strategy="no", validation_size=0, **options)]

    log = tmp_path / "log"
    with open(log, "w") as file:
        launcher = subprocess.Popen(command(stopped), cwd=ROOT, env=variables, stdout=file, stderr=file)
    wait_for(lambda: " 2/16" in log.read_text() or launcher.poll() is not None, "step 2")
    ranks = {
        int(process.environ()["RANK"]): process
        for process in psutil.Process(launcher.pid).children(recursive=True)
        if "rl_grpo.py" in process.cmdline() and "RANK" in process.environ()
    }
    ranks[1].send_signal(signal.SIGTERM)
    time.sleep(0.1)
    ranks[0].send_signal(signal.SIGUSR1)
    assert launcher.wait(timeout=PATIENCE) == 0, log.read_text()[-2000:]

    checkpoint, _ = checkpoints.last_complete(stopped)
    step = checkpoints.sealed_step(checkpoint)
    assert 2 <= step < 16
    assert {path.name for path in stopped.glob("checkpoint-*")} == {f"checkpoint-{step}"}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(checkpoint))
    said = log.read_text()
    assert f"after step {step} of 16; checkpoint-{step} is complete, and the same command continues from it" in said
    assert "Traceback" not in said
    assert not list(stopped.glob("*.safetensors"))  # nothing that looks like a finished run

    for run in (straight, stopped):
        result = subprocess.run(command(run), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr[-2000:]
    assert f"resumed from checkpoint-{step}" in result.stdout
    assert steps(straight) == steps(stopped)
    assert equal(weights(straight), weights(stopped))


@pytest.mark.parametrize(
    ("signals", "ends_with"),
    [([signal.SIGTERM], 0), ([signal.SIGINT], -signal.SIGINT), ([signal.SIGINT] * 2, -signal.SIGINT)],
)
def test_a_signal_to_the_launcher_reaches_the_training(signals, ends_with, arguments, tmp_path):
    log = tmp_path / "log"
    variables = environment(
        CONFIG="configs/toy.yaml", NUM_PROCESSES="1", ACCELERATE_CONFIG="configs/accelerate/single_gpu.yaml",
        PYTHONPATH=str(ROOT / "tests"),
    )  # fmt: skip
    command = arguments(
        reward_funcs=["accuracy", "paced.letters"], max_steps=500, eval_strategy="no", validation_size=0
    )
    with open(log, "w") as file:
        launcher = subprocess.Popen(
            ["bash", "rl_grpo.sh", *command], cwd=ROOT, env=variables, stdout=file, stderr=file,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background
        )  # fmt: skip
    wait_for(lambda: " 1/500" in log.read_text() or launcher.poll() is not None, "step 1")
    started = psutil.Process(launcher.pid).children(recursive=True)
    for number in signals:
        launcher.send_signal(number)
        time.sleep(0.02)  # two at once would arrive as one
    assert launcher.wait(timeout=PATIENCE) == ends_with, log.read_text()[-2000:]
    assert "Traceback" not in log.read_text()
    assert ("stopped by SIGUSR1 after step" in log.read_text()) == (len(signals) == 1)  # a second Ctrl-C kills at once
    assert not psutil.wait_procs(started, timeout=10)[1]


def test_a_signal_does_not_kill_the_check_before_the_training(arguments):
    """As the launchers run it: a signal that comes too early is ignored, and sent again later."""
    request = arguments(max_steps=1, eval_strategy="no", validation_size=0)
    check = subprocess.Popen(
        [sys.executable, "rl_grpo.py", "--config", "configs/toy.yaml", *request, "--preflight"],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    )  # fmt: skip
    while check.poll() is None:  # at every moment, its last ones included
        check.send_signal(signal.SIGUSR1)
        time.sleep(0.0005)
    assert check.returncode == 0


def test_a_signal_in_the_last_step_lets_the_run_finish(arguments, tmp_path, capsys, monkeypatch):
    def signal_at_once(self):
        handlers(self)
        signal.raise_signal(signal.SIGTERM)

    handlers = rl_grpo.StopTogether.__init__
    monkeypatch.setattr(rl_grpo.StopTogether, "__init__", signal_at_once)
    rl_grpo.main(arguments(max_steps=1))
    assert "finished 1 steps" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_with_sparse_logging_a_stop_logs_what_it_has(arguments, tmp_path, monkeypatch):
    handlers = rl_grpo.StopTogether.on_step_end

    def signal_in_step_3(self, args, state, control, **kwargs):
        if state.global_step == 3:
            signal.raise_signal(signal.SIGUSR1)
        handlers(self, args, state, control, **kwargs)

    monkeypatch.setattr(rl_grpo.StopTogether, "on_step_end", signal_in_step_3)
    rl_grpo.main(arguments(max_steps=10, logging_steps=2, save_strategy="no"))
    assert [entry["step"] for entry in steps(tmp_path / "run")] == [2, 3]
    assert checkpoints.last_complete(tmp_path / "run")[0].name == "checkpoint-3"
