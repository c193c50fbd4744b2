"""rl_grpo.py under FSDP on CPU processes: PyTorch can (gloo), accelerate 1.15 runs plain DDP instead, so it is led on.

Where accelerate asks what the processes run on, it is told GPUs; all tensors stay on the CPU.
"""

import os

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate.state import DistributedType, PartialState

import preflight
import recipe
import rl_grpo

make = recipe.RecipeParser.make


def make_for_gloo(self, request):
    request.use_cpu, request.ddp_backend = False, "gloo"
    return make(self, request)


PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
preflight.check_topology = lambda *args: None
recipe.RecipeParser.make = make_for_gloo
rl_grpo.main()
