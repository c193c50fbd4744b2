"""Train on this machine, or on this node of a SLURM step. rl_grpo.sh runs this, and lists the environment variables."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from os import environ
from pathlib import Path

import psutil

from r1zero.toy import TOY_BASE

TOY, FULL = "configs/toy.yaml", "configs/qwen2.5-1.5b-gsm8k.yaml"
# By the memory of the smallest GPU, from so many GB (10^9 bytes); the last without a GPU.
RECIPES = {70: FULL, 20: "configs/qwen2.5-1.5b-gsm8k-lora.yaml", 1: "configs/qwen2.5-0.5b-gsm8k-lora.yaml", 0: TOY}
# Memory in bytes of each GPU, and whether it has bf16. Asking takes GPU memory while the process lives: not this one.
READ_GPUS = """import json, torch
gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
print(json.dumps([(gpu.total_memory, gpu.major >= 8 or torch.version.hip is not None) for gpu in gpus]))"""


def leave(status: int, *lines: str) -> None:
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr, flush=True)
    if status and environ.get("SLURM_STEP_NUM_NODES", "1") != "1":
        time.sleep(2)  # srun ends all tasks with the first that fails, and may drop what that has just written
    sys.exit(status if status >= 0 else 128 - status)  # below 0: ended by a signal


def read_number(name: str, default: int, smallest: int = 0) -> int:
    text = environ.get(name) or str(default)  # unset or empty
    if not text.isdecimal() or not smallest <= int(text) <= 65535:
        leave(2, f"rl_grpo.sh: {name} {text!r} is not a number from {smallest} to 65535: correct or unset it")
    return int(text)


def find_nodes() -> tuple[int, int, list[str], str]:
    """Nodes in this SLURM step (without srun: 1), this one's rank, arguments for `accelerate launch`, meeting place."""
    nodes, tasks = (int(environ.get(f"SLURM_STEP_NUM_{name}", "1")) for name in ("NODES", "TASKS"))
    if tasks != nodes:
        leave(2, f"rl_grpo.sh: {tasks} tasks on {nodes} nodes: start one per node (--ntasks-per-node=1)")
    if nodes == 1:
        return 1, 0, ["--num_machines", "1", "--main_process_port", str(read_number("MAIN_PROCESS_PORT", 0))], ""
    # Every node has to know the port; these are below the ones that systems hand out by themselves.
    port = read_number("MAIN_PROCESS_PORT", 10000 + int(environ["SLURM_JOB_ID"]) % 20000)
    hosts = subprocess.check_output(["scontrol", "show", "hostnames", environ["SLURM_STEP_NODELIST"]], text=True)
    # SLURM's own address of a node is one that the others reach; some clusters hide it.
    shown = subprocess.run(["scontrol", "show", "node", hosts.split()[0]], capture_output=True, text=True).stdout
    address = [*re.findall(r"NodeAddr=(\S+)", shown), *hosts.split()][0]
    node = environ["SLURM_NODEID"]
    rendezvous = f"--num_machines {nodes} --machine_rank {node} --main_process_ip {address} --main_process_port {port}"
    return nodes, int(node), [*rendezvous.split(), "--same_network"], f" on {nodes} nodes, meeting at {address}:{port}"


def choose_recipe(gpu_memory_bytes: list[int]) -> tuple[str, str]:
    """The recipe that fits the smallest GPU, or the toy's without a GPU; and the reason, for a reader."""
    memory = min(gpu_memory_bytes, default=0) / 1e9
    recipe = next(recipe for least, recipe in RECIPES.items() if memory >= least)
    return recipe, f"GPU memory {memory:.0f} GB" if gpu_memory_bytes else "no GPU found"


def choose(gpus: list[tuple[int, bool]], cores: int, nodes: int) -> tuple[list[str], str]:
    """Set the environment variables that the user left unset; return arguments for rl_grpo.py, and why this recipe."""
    arguments, reason = [], ""
    if not environ.get("CONFIG"):
        environ["CONFIG"], reason = choose_recipe([memory for memory, _ in gpus])
        if not all(has_bf16 for _, has_bf16 in gpus):  # such GPUs have less than 70 GB, so this is a LoRA recipe
            arguments = ["--bf16", "false", "--fp16", "true"]
            reason += f", no bf16: {' '.join(arguments)}"
    # Without a GPU, processes generate faster than threads, but must divide the batch. Threads use the other cores.
    processes = read_number("NUM_PROCESSES", len(gpus) or max(n for n in (1, 2, 4) if cores % n == 0), smallest=1)
    name = "cpu" if not gpus else "zero2" if nodes * processes > 1 else "single_gpu"
    is_toy = os.path.realpath(environ["CONFIG"]) == os.path.realpath(TOY)
    values = {"NUM_PROCESSES": processes, "ACCELERATE_CONFIG": f"configs/accelerate/{name}.yaml", "EVALUATE": +is_toy}
    values |= {} if gpus else {"OMP_NUM_THREADS": max(1, cores // processes)}  # torchrun would set 1
    environ.update({key: str(value) for key, value in values.items() if not environ.get(key)})
    return arguments, reason and f" ({reason})"


def needs_only_toy(request: list[str], processes: int) -> bool:
    """Whether a refused request names the toy, and its keys, their types and the batch are right."""
    from r1zero import arguments, batch, recipe  # this takes seconds

    with suppress(recipe.RequestError):
        values = arguments.make_parser().read(request)
        batch.check(values, processes)
        return bool({values.model_name_or_path, values.dataset_name} & {TOY_BASE, f"{TOY_BASE}/data"})
    return False


def check(request: list[str], processes: int, node: int, one_process: dict[str, str]) -> None:
    """Check the request before torchrun, which would bury the line that says what is wrong. Make the toy if missing."""
    command = [sys.executable, "rl_grpo.py", *request, "--preflight", "--num_processes", str(processes)]
    command += ["--accelerate_config", environ["ACCELERATE_CONFIG"]]
    variables = {**environ, "LOCAL_WORLD_SIZE": environ["NUM_PROCESSES"]}
    while True:
        has_toy = Path(TOY_BASE).exists()  # looked up before the check, as node 0 may be making it
        checked = subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if checked.returncode == 0:
            return
        if has_toy or checked.returncode != 2 or not needs_only_toy(request, processes):
            name = f"{environ['SLURMD_NODENAME']}: " if node else ""
            leave(checked.returncode, *(name + line for line in checked.stderr.splitlines()))
        if node > 0:
            time.sleep(5)
        elif status := subprocess.run([sys.executable, "-m", "r1zero.toy"], env=one_process).returncode:
            leave(status)


def train(command: list[str]) -> int:
    """Run `accelerate launch`; return its exit status, or -SIGINT after Ctrl-C: once saves a checkpoint, twice kills.

    Training processes stop by themselves on SIGTERM and SIGUSR1. torchrun would print a traceback and kill them after
    30 s, so it ignores both, and its children get SIGUSR1 from here, every 2 s: while they start they ignore it too.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for number in before:
        signal.signal(number, signal.SIG_IGN)  # the launcher inherits this
    launcher = subprocess.Popen(command, env={**environ, "PET_SIGNALS_TO_HANDLE": "SIGHUP,SIGQUIT"})
    interrupts = 0

    def stop(number, frame) -> None:
        nonlocal interrupts
        if number == signal.SIGINT and (interrupts := interrupts + 1) == 1:
            print(" stopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)
        signal.alarm(2)  # calls this again
        with suppress(psutil.NoSuchProcess):  # one has just ended
            for worker in psutil.Process(launcher.pid).children():
                worker.send_signal(signal.SIGKILL if interrupts > 1 else signal.SIGUSR1)
            if interrupts > 1:
                launcher.kill()

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, signal.SIGINT):
        if number != signal.SIGINT or before[number] != signal.SIG_IGN:  # in the background Ctrl-C is for others
            signal.signal(number, stop)
    status = launcher.wait()
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)
    return -signal.SIGINT if interrupts else status


def finish(run: str, one_process: dict[str, str]) -> None:
    """Evaluate a finished run, by samples as in training (greedy decoding may hide progress), and plot it."""
    evaluate = ["eval.py", run, "--with_base", "--num_samples", "8", "--temperature", "1"]
    evaluated = subprocess.run([sys.executable, *evaluate], env=one_process)
    plotted = subprocess.run([sys.executable, "plots.py", run], env=one_process, stdout=subprocess.PIPE, text=True)
    if plotted.returncode == 0:
        print(f"curves in {Path(plotted.stdout.splitlines()[0]).parent}", flush=True)
    if failed := [shlex.join(one.args[1:]) for one in (evaluated, plotted) if one.returncode]:
        leave(1, *(f"rl_grpo.sh: the training is complete, but this failed: python {command}" for command in failed))


def prefetch(arguments: list[str]) -> None:
    config = environ.get("CONFIG")
    request = ["--config", config or FULL, *arguments]  # a login node fetches for nodes with GPUs
    if status := subprocess.run([sys.executable, "rl_grpo.py", *request, "--prefetch"]).returncode:
        leave(status)
    print("On the cluster, with your account (--nodes=2 for more than one node):")
    submit = shlex.join(["sbatch", "-A", "ACCOUNT", "run_rl_grpo.cardinal.slurm", *arguments])
    print(f"  CONFIG={shlex.quote(config)} {submit}" if config else f"  {submit}")


def main(arguments: list[str]) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before and after the training, end without a traceback
    if "--prefetch" in arguments:
        return prefetch([word for word in arguments if word != "--prefetch"])
    nodes, node, rendezvous, meeting = find_nodes()
    gpus = json.loads(subprocess.check_output([sys.executable, "-c", READ_GPUS]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    one_process = {"OMP_NUM_THREADS": str(cores), **environ}
    precision, reason = choose(gpus, cores, nodes)
    config, accelerate_config = environ["CONFIG"], environ["ACCELERATE_CONFIG"]
    processes = nodes * int(environ["NUM_PROCESSES"])
    request = ["--config", config, *precision, *arguments]
    check(request, processes, node, one_process)
    if node == 0:
        print(f"rl_grpo.sh: {config}{reason} on {processes} × {Path(accelerate_config).stem}{meeting}", flush=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", accelerate_config]
    command += ["--num_processes", str(processes), *rendezvous, "rl_grpo.py", *request]
    with tempfile.NamedTemporaryFile() as finished:  # rl_grpo.py writes the run's directory into it at its end
        environ["FINISHED_FILE"] = finished.name
        status = train(command)
        run = Path(finished.name).read_text().strip()
    if status == -signal.SIGINT:
        os.kill(os.getpid(), signal.SIGINT)  # so that a shell loop around this ends too
    if run and environ["EVALUATE"] == "1":
        finish(run, one_process)
    leave(status)


if __name__ == "__main__":
    main(sys.argv[1:])
