"""All hooks into TRL's `GRPOTrainer`: overrides, and nothing patched in TRL's modules.

`tests/test_trl_hooks.py` pins what each hook relies on in TRL and transformers.
"""

import os
import time
from collections import defaultdict
from pathlib import Path

import pandas
import torch
import wandb
from transformers import PrinterCallback, ProgressCallback
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer, get_quantization_config
from trl.extras.profiling import profiling_context
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import create_model_from_path

from r1zero import checkpoints, padding, rollouts, run_directory
from r1zero.console import RunReport


def load_model(model_args, training_args, end_token_ids: list[int]):
    """Load the model that is trained, with the end tokens that TRL then stops completions at.

    Args:
        model_args: TRL's `ModelConfig`.
        training_args: TRL's `GRPOConfig`; its `model_init_kwargs` add to the arguments, and are used up.
        end_token_ids: a base model's generation config lacks the chat template's.
    """
    if training_args.use_vllm:
        training_args.generation_kwargs = {"stop_token_ids": end_token_ids, **(training_args.generation_kwargs or {})}
    arguments = {
        "revision": model_args.model_revision, "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype, "trust_remote_code": training_args.trust_remote_code,
        "use_safetensors": True,  # other formats can contain code
        **(training_args.model_init_kwargs or {}),
    }  # fmt: skip
    if (quantization := get_quantization_config(model_args)) is not None:
        arguments["quantization_config"] = quantization
    if training_args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        arguments["device_map"] = None
    # TRL builds a reference model (beta > 0) from these, and warns of them for any other model that is loaded already.
    training_args.model_init_kwargs = arguments if training_args.beta else None
    model = create_model_from_path(model_args.model_name_or_path, **arguments)
    model.generation_config.eos_token_id = end_token_ids
    return model


class Trainer(GRPOTrainer):
    """TRL's trainer that reads each prompt once, leaves padding out, and keeps checkpoints and validations safe."""

    def __init__(self, *, args, **kwargs):
        if args.deepspeed_plugin is not None:
            # DeepSpeed would sum the gradients of a step's micro-batches in the model's type, and so in bf16.
            fp32 = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
            args.deepspeed_plugin.deepspeed_config.update(fp32)
        super().__init__(args=args, **kwargs)
        # Processes that hold a part of the weights each must call the model equally often.
        is_sharded = is_deepspeed_zero3_enabled() or self.is_fsdp_enabled
        self.shares_prompts = not is_sharded and rollouts.can_share(self.model)
        self.samples_itself = False
        if self.shares_prompts and not (self.use_vllm or self.use_transformers_continuous_batching):
            mode = self.generation_config.get_generation_mode()
            self.samples_itself = mode in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
        # Where a generation batch is one optimizer step, its micro-batches may hold any of its completions.
        self.sorts_by_length = self.args.steps_per_generation == self.args.gradient_accumulation_steps
        self.tokens_by_micro_batch = {"train": [], "eval": []}
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.report = RunReport(self.reward_func_names)
        self.add_callback(self.report)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args, **kwargs):
        training = self.model.training
        if self.samples_itself:
            completion_ids, logprobs = self._sample(prompt_ids), None
        else:
            completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.model.train(training)  # TRL's continuous batching leaves it in training mode, in a validation as well
        ends = set(self.eos_token_ids)
        self._log_completion_extra("tokens", [len(ids) for ids in completion_ids])
        self._log_completion_extra("truncated", [ids[-1] not in ends for ids in completion_ids])
        return completion_ids, logprobs

    def _sample(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        with (
            profiling_context(self, "transformers.generate"),
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            rollouts.weights_as(model, precision),
        ):  # fmt: skip
            return rollouts.generate(model, self._tokenizer, prompt_ids, self.generation_config)

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before and self.sorts_by_length:
            self._buffered_inputs = padding.longest_first(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def compute_loss(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        if self.top_entropy_quantile == 1.0:  # otherwise the processes exchange tables of one shape
            inputs = padding.trim(inputs, self.args.pad_to_multiple_of or 1)
        tokens = self.accelerator.reduce(inputs["completion_mask"].sum(), reduction="sum")
        self.tokens_by_micro_batch["train" if self.model.training else "eval"].append(int(tokens))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # With activation checkpointing a model keeps no cache while it trains; an auxiliary loss needs all tokens.
        if self.shares_prompts and not self.model.is_gradient_checkpointing and not kwargs.get("compute_aux_loss"):
            model = rollouts.Scoring(model, input_ids.size(1) - logits_to_keep)
        arguments = (input_ids, attention_mask, logits_to_keep, *args)
        return super()._get_per_token_logps_and_entropies(model, *arguments, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs.pop("train_loss", None)  # the mean over this start only, and no measure of progress in GRPO
        kind = "validation" if "eval_loss" in logs else "completions"
        columns = {"prompt": self._logs["prompt"], "completion": self._logs["completion"]}
        columns |= {**self._logs["rewards"], **self._logs["extra"], "advantage": self._logs["advantages"]}
        table = pandas.DataFrame({"step": self.state.global_step, **{k: list(v) for k, v in columns.items()}})
        if kind == "validation":
            table = self._count_each_row_once(table)
        self._weight_by_tokens()
        # TRL would print a table of all completions, and write a validation's over those of the step before it.
        wanted, self.log_completions = self.log_completions, False
        super().log(logs, start_time)
        self.log_completions = wanted
        if wanted and self.accelerator.is_main_process and {"reward", "eval_reward"} & logs.keys():
            run_directory.save_completions(self.args.output_dir, kind, self.state.global_step, table)
            if self.model.training:
                self.report.say_sample(self._logs, self.num_completions_to_print or 1)
                if wandb.run is not None:
                    wandb.log({"completions": wandb.Table(dataframe=table)})

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        # TRL keeps the last completions of training and validation in one place, as many as a step has: while this
        # runs, keep all of this validation's.
        training, names = self._logs, ("images", "prompt", "completion", "advantages")
        self._logs = {**{name: [] for name in names}, "rewards": defaultdict(list), "extra": defaultdict(list)}
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._logs = training

    def _count_each_row_once(self, table: pandas.DataFrame) -> pandas.DataFrame:
        """Drop the rows that accelerate repeats to give each process as many, and correct the means over a validation.

        The repeated rows come last. TRL's other metrics of a validation remain means over its batches.
        """
        table = table.head(len(self.eval_dataset) * self.num_generations_eval)
        metrics = self._metrics["eval"]
        names = {f"rewards/{name}/mean": name for name in self.reward_func_names}
        names |= {"completions/mean_length": "tokens", "completions/clipped_ratio": "truncated"}
        metrics |= {metric: [table[column].astype(float).mean()] for metric, column in names.items()}
        rewards = table[self.reward_func_names].astype(float)
        metrics["reward"] = [(rewards * self.reward_weights.tolist()).sum(axis=1, min_count=1).mean()]
        return table

    def _weight_by_tokens(self) -> None:
        """Replace means over micro-batches, which are sorted by length here, by means over their tokens."""
        mode = "train" if self.model.training else "eval"
        weights, self.tokens_by_micro_batch[mode] = self.tokens_by_micro_batch[mode], []
        metrics = self._metrics[mode]
        for name, values in metrics.items():
            is_token_mean = name in ("entropy", "kl") or (name.startswith("clip_ratio/") and name.endswith("_mean"))
            if is_token_mean and len(values) == len(weights) and sum(weights):
                metrics[name] = [sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)]

    def _save_checkpoint(self, model, trial) -> None:
        # A checkpoint counts, and may replace others, only when every process has written its part.
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        if self.accelerator.is_main_process:
            checkpoints.begin(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoints.finish(folder, self.state.global_step, limit, self.state.best_model_checkpoint)

    def end(self) -> None:
        super().end()
        # torchrun on the first node serves the others until they have ended, so it has to leave last.
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" and os.environ["GROUP_RANK"] == "0":
            time.sleep(2)
