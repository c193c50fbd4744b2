"""Rewards for the launch tests. Importing this module pins the rollouts.

A completion then depends only on its prompt and its place in the group, so trainings on any number of processes see the
same completions. Named on the command line, as in `--reward_funcs pinned.variety`.
"""

import random

import transformers.training_args

from r1zero.trainer import Trainer


def write_pinned(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
    """Replaces `GRPOTrainer._generate_single_turn`: completions of one to ten token ids, and no log-probabilities."""
    first = self.accelerator.process_index * len(prompt_ids)  # the rows of a rank are adjacent
    completions = []
    for index, ids in enumerate(prompt_ids, start=first):
        rng = random.Random(repr((ids, index % num_generations)))
        completions.append(rng.choices(range(20, 120), k=rng.randint(1, 10)))
    return completions, None


Trainer._generate_single_turn = write_pinned
# transformers refuses bf16 with DeepSpeed on a machine without a GPU. DeepSpeed itself does not.
transformers.training_args.is_torch_bf16_gpu_available = lambda: True


def variety(completions, **kwargs):
    """How many different characters a completion has."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]
