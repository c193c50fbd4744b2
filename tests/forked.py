"""Trainings in forked processes, each killed with SIGKILL at its own moment. The imports are paid for once.

    python tests/forked.py plan.json

The plan is a list of starts: `arguments` of rl_grpo.py, and `kill_at` (number of an opened file of the run, and seconds
after that), or `room_at` (from this checkpoint on no file may grow beyond `room` bytes), or neither. Prints one line of
JSON for each: exit status and output.
"""

import json
import os
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import rl_grpo
from r1zero import checkpoints


def arm(kill_at: list, run: str) -> None:
    """Kill this process some seconds after the given number of files of the run was opened."""
    number, seconds = kill_at
    opened = 0

    def on_event(event, arguments):
        nonlocal opened
        if event == "open" and str(arguments[0]).startswith(run):
            opened += 1
            if opened == number:
                if seconds == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(on_event)


def narrow(room_at: str, room: int) -> None:
    """From a checkpoint's start on, let no file grow beyond so many bytes, as on a full disk."""
    begin = checkpoints.begin

    def begin_and_narrow(folder):
        if folder.name == room_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        begin(folder)

    checkpoints.begin = begin_and_narrow


def start(arguments: list[str], kill_at=None, room_at=None, room=None) -> dict:
    reads, writes = os.pipe()  # not a file: those may be kept small
    child = os.fork()
    if child == 0:
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        code = 1
        try:
            if kill_at:
                arm(kill_at, arguments[arguments.index("--output_dir") + 1])
            if room_at:
                narrow(room_at, room)
            rl_grpo.main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writes)
    with open(reads) as file:
        said = file.read()
    return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "said": said}


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(start(**one)), flush=True)
