"""A private SLURM on this machine: munged, slurmctld and two slurmd with four fake GPUs each, all in one folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")


def unavailable() -> str | None:
    """Why a cluster cannot be started here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian's packages slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "a private SLURM needs root"


def search_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Cluster:
    """Nodes n1 and n2, partition gpu. `start` returns when both are idle; `stop` ends what was started, by process id.

    Attributes:
        environment: what a process needs to talk to it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": search_path()}
        self.daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        folder = self.folder
        for name in ("state", "munge", "devices"):
            (folder / name).mkdir(mode=0o700)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for number in range(4):  # a device file that can be opened is all that SLURM asks of a GPU
            os.mknod(folder / "devices" / f"gpu{number}", 0o020666, os.makedev(1, 3))
        controller, *nodes = free_ports(3)
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/devices/gpu[0-3]\n")
        (folder / "slurm.conf").write_text(
            f"""
ClusterName=private
SlurmctldHost={socket.gethostname().split(".")[0]}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired, two minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 Port={nodes[0]} CPUs=96 RealMemory=864000 Gres=gpu:4
NodeName=n2 NodeAddr=127.0.0.1 Port={nodes[1]} CPUs=96 RealMemory=864000 Gres=gpu:4
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE DefMemPerCPU=9000
"""
        )
        munge = [f"--{name}={folder}/munge/{name.removesuffix('-file')}" for name in ("key-file", "socket", "pid-file")]
        munge += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"]
        self._run("munged", "--foreground", "--force", *munge)
        self._wait_until(lambda: (folder / "munge" / "socket").exists(), "munged")
        self._run("slurmctld", "-D", "-c")
        self._run("slurmd", "-D", "-N", "n1")
        self._run("slurmd", "-D", "-N", "n2")
        self._wait_until(
            lambda: self.command("sinfo", "-h", "-o", "%T %D").stdout.strip() == "idle 2", "two idle nodes"
        )

    def stop(self) -> None:
        if self.daemons:
            self.command("scancel", "--signal=KILL", "--full", "--state=RUNNING", "--user=root")
            self.command("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def command(self, *words) -> subprocess.CompletedProcess:
        """Run one of SLURM's commands."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job: JobState, Restarts, ExitCode, RunTime, …"""
        words = self.command("scontrol", "--oneliner", "show", "job", number).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _run(self, program: str, *arguments: str) -> None:
        log = open(self.folder / f"{program}{len(self.daemons)}.out", "w")  # noqa: SIM115 - the daemon's, until it ends
        environment = {**os.environ, **self.environment}
        path = shutil.which(program, path=search_path())
        self.daemons.append(subprocess.Popen([path, *arguments], env=environment, stdout=log, stderr=log))
        log.close()

    def _wait_until(self, ready, what: str) -> None:
        until = time.monotonic() + 30
        while not ready():
            dead = [daemon.args[0] for daemon in self.daemons if daemon.poll() is not None]
            said = "\n".join(file.read_text()[-500:] for file in sorted(self.folder.glob("*.out")))
            assert not dead and time.monotonic() < until, f"no {what}; ended: {dead}\n{said}"
            time.sleep(0.2)
