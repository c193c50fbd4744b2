"""Rewards for the launch tests; importing this module pins the rollouts.

A completion is then a function of its prompt and its place in the group alone, so trainings on any number of
processes see the same ones. Named on the command line, as in `--reward_funcs pinned.variety`.
"""

import random

from trl import GRPOTrainer


def write_pinned(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
    """Stands in for TRL's `GRPOTrainer._generate_single_turn`: token ids, of one to ten tokens, and no log-probs."""
    first = self.accelerator.process_index * len(prompt_ids)  # a rank's share is contiguous
    completions = []
    for index, ids in enumerate(prompt_ids, start=first):
        rng = random.Random(repr((ids, index % num_generations)))
        completions.append(rng.choices(range(20, 120), k=rng.randint(1, 10)))
    return completions, None


GRPOTrainer._generate_single_turn = write_pinned


def variety(completions, **kwargs):
    """How many different characters a completion has."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]
