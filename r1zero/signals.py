"""Stop a training on SIGTERM or SIGUSR1 without loss: all ranks after the same step, with one complete checkpoint.

A cluster's signal reaches each process at another moment. transformers' `enable_jit_checkpoint` does not work here:
each rank saves when its own signal arrives, so two ranks save different steps or wait for each other forever in the
collectives of a sharded save. It also saves inside a step, whose rollouts a resumed run would sample again.
"""

import signal

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopTogether(TrainerCallback):
    """Ends the training after the step in which any rank received a signal, with a checkpoint.

    Its handlers are installed when it is made, in the main thread, so that a signal counts while the model loads. At
    the end of each step the ranks agree by an all-reduce of one number. `agreed` is the signal they stopped for.
    """

    def __init__(self):
        self.received, self.agreed = 0, None
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
            # Log too: averages since the last logging step are not in a checkpoint.
            control.should_log = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number in SIGNALS:  # when Python exits it restores the default handlers, and a signal would kill the save
            signal.signal(number, signal.SIG_IGN)
