"""Named as a reward: says in which type DeepSpeed sums the gradients of a step's micro-batches.

transformers refuses bf16 with DeepSpeed on a machine without a GPU. DeepSpeed itself does not, so the check is skipped.
"""

import transformers.training_args
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

transformers.training_args.is_torch_bf16_gpu_available = lambda: True


def speaking(build):
    def init(self, *args, **kwargs):
        build(self, *args, **kwargs)
        print(f"DeepSpeed sums gradients in {self.gradient_accumulation_dtype}", flush=True)

    return init


for optimizer in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3):
    optimizer.__init__ = speaking(optimizer.__init__)


def variety(completions, **kwargs):
    """How many different characters a completion has."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]
