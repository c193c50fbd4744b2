"""Stop a training on SIGTERM or SIGUSR1 so that nothing is lost: all ranks at one step, one complete checkpoint.

A cluster warns a job before its time is up, or takes its nodes away, with a signal that reaches each process at
another moment. transformers' `enable_jit_checkpoint` is not enough here: each rank saves when its own signal
arrives, so two ranks save different steps (or wait for each other for ever in the collectives of a sharded
save), and it saves inside a step, whose rollouts a resumed run would sample anew.
"""

import signal

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopTogether(TrainerCallback):
    """Ends the training at the end of the step in which any rank has got a signal, with a checkpoint.

    The handlers are installed when it is made, in the main thread: when the request is checked, so that a signal that
    arrives while the model loads counts too, and none where nothing is trained. The ranks agree by one all-reduce of a
    number at each step's end.

    Attributes:
        agreed: the signal that all ranks stopped for, or None.
    """

    def __init__(self):
        self.received = 0
        self.agreed: signal.Signals | None = None
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.received = self.received or number

    def on_step_end(self, args, state, control, **kwargs):
        received = torch.tensor(self.received, device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        if received and state.global_step < state.max_steps:
            self.agreed = signal.Signals(received.item())
            # Logged as well: averages since the last logging step are not in a checkpoint.
            control.should_log = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        # What is left is to save and to end; Python's own last steps would give a handled signal its deadly default.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
