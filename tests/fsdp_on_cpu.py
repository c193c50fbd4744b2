"""rl_grpo.py under FSDP on CPU processes. PyTorch supports it (gloo); accelerate 1.15 runs plain DDP instead.

Where accelerate asks what the processes run on, it is told GPUs. All tensors stay on the CPU.
"""

import os

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate.state import DistributedType, PartialState

import rl_grpo
from r1zero import processes

settle = processes.settle


def settle_for_gloo(request, plan):
    settle(request, plan)
    request.use_cpu, request.ddp_backend = False, "gloo"


PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
processes.check = lambda path, plan: setattr(plan, "sharding", "fsdp")
processes.settle = settle_for_gloo
rl_grpo.main()
