"""What each hook in r1zero/trainer.py and r1zero/rollouts.py relies on in TRL and transformers.

A failure names the hook to look at after an upgrade.
"""

import inspect

import pytest
import torch
from transformers import GenerationMixin, Qwen2ForCausalLM, Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer import grpo_trainer
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, split_tensor_dict

from r1zero import rollouts
from r1zero.trainer import Trainer as Ours


def source(function) -> str:
    return inspect.getsource(inspect.unwrap(function))


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


# Hook, what it relies on, and whether that holds.
RELIES_ON = [
    ("load_model", "TRL stops completions at the end tokens of a loaded model's generation config",
     lambda: "eos_token_ids = model.generation_config.eos_token_id" in source(GRPOTrainer.__init__)),
    ("load_model", "TRL builds the reference model from model_init_kwargs only if beta is not 0",
     lambda: "if self.beta == 0.0:" in source(GRPOTrainer.__init__)
     and "model_init_kwargs = dict(args.model_init_kwargs or {})" in source(GRPOTrainer.__init__)),
    ("load_model", "create_model_from_path takes a dtype as a string",
     lambda: 'dtype in ["bfloat16", "float16", "float32"]' in source(create_model_from_path)),
    ("load_model", "vLLM gets generation_kwargs",
     lambda: "generation_kwargs=args.generation_kwargs" in source(GRPOTrainer.__init__)),
    ("_generate_single_turn", "its arguments and what it returns",
     lambda: parameters(GRPOTrainer._generate_single_turn)[:2] == ["self", "prompt_ids"]
     and "return completion_ids, logprobs" in source(GRPOTrainer._generate_single_turn)),
    ("_generate_single_turn", "TRL leaves the model in training mode after continuous batching",
     lambda: "unwrapped_model.train()" in source(GRPOTrainer._generate_single_turn)),
    ("_generate_single_turn", "extra columns of the completions table are collected per generation",
     lambda: parameters(GRPOTrainer._log_completion_extra) == ["self", "column", "values"]
     and "self._pending_extra_logs.clear()" in source(GRPOTrainer._generate_and_score_completions)),
    ("_sample", "unwrap_model_for_generation, generation_kwargs and generation_config",
     lambda: {"model", "accelerator", "generation_kwargs", "gradient_checkpointing_kwargs"}
     <= set(parameters(unwrap_model_for_generation))
     and "self.generation_kwargs = generation_kwargs" in source(GRPOTrainer.__init__)),
    ("rollouts.sample", "generate hands a custom method its prepared arguments",
     lambda: "custom_generate" in parameters(GenerationMixin.generate)
     and parameters(GenerationMixin._sample)[:5]
     == ["self", "input_ids", "logits_processor", "stopping_criteria", "generation_config"]),
    ("rollouts.Scoring", "TRL scores with fused_lm_head and passes input_ids, attention_mask and labels",
     lambda: "model(**model_inputs, labels=labels, fused_lm_head=True)"
     in source(GRPOTrainer._get_per_token_logps_and_entropies)
     and "outputs.log_probs[:, -logits_to_keep:]" in source(GRPOTrainer._get_per_token_logps_and_entropies)),
    ("rollouts.Scoring", "the fused head passes a cache on to the backbone",
     lambda: "getattr(self, backbone_attr)(*args, **kwargs)" in source(add_fused_lm_head)),
    ("_get_per_token_logps_and_entropies", "its first arguments",
     lambda: parameters(GRPOTrainer._get_per_token_logps_and_entropies)[:5]
     == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]),
    ("_prepare_inputs", "a generation batch is shuffled, split and buffered",
     lambda: all(
         line in source(GRPOTrainer._prepare_inputs)
         for line in (
             "shuffle_sequence_dict(generation_batch)",
             "split_tensor_dict(generation_batch, self.args.steps_per_generation)",
             "self._buffered_inputs = [",
             "self._buffered_inputs[self._step % self.args.steps_per_generation]",
         )
     )),
    ("padding.longest_first", "split_tensor_dict cuts tensors and lists alike",
     lambda: [{name: list(part) for name, part in half.items()} for half in split_tensor_dict(
         {"tensor": torch.arange(4), "list": [1, 2, 3, 4]}, 2)]
     == [{"tensor": [0, 1], "list": [1, 2]}, {"tensor": [2, 3], "list": [3, 4]}]),
    ("compute_loss", "the names of the masks and the tables that top_entropy_quantile exchanges",
     lambda: '"prompt_mask"' in source(GRPOTrainer._compute_loss)
     and '"completion_mask"' in source(GRPOTrainer._compute_loss)
     and "self.top_entropy_quantile < 1.0" in source(GRPOTrainer._compute_loss)),
    ("log", "TRL prints and writes all completions at each logging step if log_completions is set",
     lambda: "self.accelerator.is_main_process and self.log_completions" in source(GRPOTrainer.log)
     and "print_prompt_completions_sample(" in source(GRPOTrainer.log)
     and '"advantage": self._logs["advantages"]' in source(GRPOTrainer.log)),
    ("log", "metrics are means over the lists in _metrics",
     lambda: "self._metrics[mode].items()" in source(GRPOTrainer.log)),
    ("evaluate", "TRL keeps completions of training and validation in one place",
     lambda: 'self._logs["prompt"].extend' in source(GRPOTrainer._generate_and_score_completions)),
    ("_save_checkpoint", "transformers writes checkpoint-<step>, and deletes older ones by save_total_limit",
     lambda: 'f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"' in source(Trainer._save_checkpoint)
     and "save_total_limit" in source(Trainer._save_checkpoint)),
    ("__init__", "generation_config exists only where transformers generates",
     lambda: "self.generation_config = GenerationConfig(" in source(GRPOTrainer.__init__)),
    ("rollouts.can_share", "a model takes position_ids",
     lambda: "position_ids" in parameters(Qwen2ForCausalLM.forward)),
    ("arguments", "steps_per_generation follows gradient_accumulation_steps",
     lambda: GRPOConfig(output_dir="x", use_cpu=True, bf16=False, gradient_accumulation_steps=3,
                        per_device_train_batch_size=8).steps_per_generation == 3),
]  # fmt: skip


@pytest.mark.parametrize(("hook", "relies_on", "holds"), RELIES_ON, ids=[f"{a}: {b}" for a, b, _ in RELIES_ON])
def test_trl_and_transformers_are_as_the_hook_expects(hook, relies_on, holds):
    assert holds(), f"r1zero hook {hook} relies on this, and it no longer holds: {relies_on}"


def test_every_override_has_something_to_override():
    for name, value in vars(Ours).items():
        if inspect.isfunction(value) and name not in ("_sample", "_count_each_row_once", "_weight_by_tokens"):
            assert hasattr(GRPOTrainer, name), f"r1zero/trainer.py overrides {name}, which TRL no longer has"


def test_nothing_is_patched_in_trl():
    """After training, TRL's module functions are TRL's own; see the tests that train in this process."""
    for name in ("shuffle_sequence_dict", "print_prompt_completions_sample"):
        assert getattr(grpo_trainer, name).__module__.startswith("trl.")
    assert rollouts.sample.__module__ == "r1zero.rollouts"
