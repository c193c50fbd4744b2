"""Train a language model to reason on GSM8K with GRPO and four rule-based rewards, as in DeepSeek-R1-Zero.

    python rl_grpo.py --config configs/toy.yaml
    python rl_grpo.py --config configs/qwen2.5-1.5b-gsm8k.yaml --learning_rate 1e-6 --seed 1
    accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 4 \\
        rl_grpo.py --config configs/qwen2.5-1.5b-gsm8k.yaml
    python rl_grpo.py --config configs/toy.yaml --preflight        # check everything, train nothing
    python rl_grpo.py --config configs/qwen2.5-1.5b-gsm8k.yaml --prefetch      # for machines without a network

Every field of TRL's GRPOConfig and ModelConfig is an argument and a recipe key; the command line overrides the
recipe. The same command again resumes from the last checkpoint. Exit codes: 0 done, or stopped by a signal with a
checkpoint; 2 the request was wrong.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import trl.trainer.grpo_trainer
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

import checkpoints
import padding
import preflight
import report
import shared_prompts
from gsm8k import PromptStyle
from recipe import RecipeParser, RequestError
from rewards import REWARDS
from signals import StopTogether


@dataclass
class R1ZeroArguments:
    """The few fields that are ours; all others are TRL's."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format", "reflection", "length"],
        metadata={"help": f"rewards, summed, among {', '.join(REWARDS)}; or TRL's by name"},
    )
    prompt_style: PromptStyle = field(
        default="chat",
        metadata={"help": "R1-Zero instructions by chat template, the same as plain text, or the bare question"},
    )
    prompts_per_step: int | None = field(
        default=None,
        metadata={"help": "prompts an optimizer step on all processes together; accumulation steps follow"},
    )
    validation_size: int = field(
        default=0, metadata={"help": "rows held out of the train split for the trainer's evaluation"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "start anew; what is in output_dir is moved aside, not deleted"}
    )
    preflight: bool = field(default=False, metadata={"help": "check the request, then stop"})
    num_processes: int | None = field(
        default=None, metadata={"help": "with --preflight: check for this many processes"}
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "with --preflight: check for this topology, a file in configs/accelerate"}
    )
    prefetch: bool = field(
        default=False, metadata={"help": "download model and data into the cache, check the request, then stop"}
    )


class Trainer(GRPOTrainer):
    """TRL's trainer, but that a group's prompt is read once and padding is left out; and in what a validation leaves,
    when a checkpoint counts, and how several nodes end."""

    shares_prompts = False

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        # TRL keeps the last completions of training and validation in one place: here are to be this validation's only.
        kept = self._logs
        columns = (kept["prompt"], kept["completion"], kept["advantages"])
        for column in (*columns, *kept["rewards"].values(), *kept["extra"].values()):
            column.clear()
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL would write a validation's completions over those of the step before it.
        wanted = self.log_completions
        self.log_completions = wanted and self.model.training
        logs.pop("train_loss", None)  # the last entry's; of this start alone, and a measure of nothing in GRPO
        super().log(logs, start_time)
        self.log_completions = wanted
        if wanted and not self.model.training and self.accelerator.is_main_process:
            report.save_validation(self.args.output_dir, self.state.global_step, self._logs)

    def _generate_single_turn(self, *args, **kwargs):
        # After continuous batching TRL sets the model to train, in a validation too.
        training = self.model.training
        generated = super()._generate_single_turn(*args, **kwargs)
        self.model.train(training)
        return generated

    def compute_loss(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        if self.top_entropy_quantile == 1.0:  # else the processes exchange tables, which are to be of one shape
            inputs = padding.trim(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # With activation checkpointing, a model keeps no cache while it trains; an auxiliary loss is of all tokens.
        if self.shares_prompts and not self.model.is_gradient_checkpointing and not kwargs.get("compute_aux_loss"):
            model = shared_prompts.Scoring(model, input_ids.size(1) - logits_to_keep)
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _save_checkpoint(self, model, trial) -> None:
        # A checkpoint counts, and may replace others, only when every process has written its part.
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        if self.accelerator.is_main_process:
            checkpoints.clear_for(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoints.finish(folder, self.state.global_step, limit, self.state.best_model_checkpoint)

    def end(self) -> None:
        super().end()
        # torchrun on the first node answers the others until they have ended: it should leave last.
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" and os.environ["GROUP_RANK"] == "0":
            time.sleep(2)


def make_parser() -> RecipeParser:
    return RecipeParser(
        (R1ZeroArguments, ScriptArguments, GRPOConfig, ModelConfig),
        usage="python rl_grpo.py --config RECIPE.yaml [--key value …]",
        description=__doc__,
    )


def main(argv: list[str] | None = None) -> None:
    # ------------------------------------------------------------------------------------------------------
    # The request: recipe, command line, and everything that can be checked before weights are loaded
    # ------------------------------------------------------------------------------------------------------
    report.quieten()
    parser = make_parser()
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        request = parser.read(argv)
        recipe = parser.resolve(request)
        plan = preflight.check(request, recipe)
        if is_main and (request.preflight or not plan.errors):
            report.say_plan(plan, request.preflight)
        if plan.errors:
            raise RequestError(*plan.errors)
        request.gradient_accumulation_steps = plan.gradient_accumulation_steps
        # The recipe's bf16 says what is computed in bf16, whatever the topology's file says.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        if not torch.accelerator.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which transformers imports, warns otherwise
            # To accelerate, `use_cpu` means plain DDP even where DeepSpeed was asked for; DeepSpeed needs only gloo.
            deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
            request.use_cpu, request.ddp_backend = (False, "gloo") if deepspeed else (True, None)
        if request.ddp_find_unused_parameters is None:  # a causal language model uses all of its parameters
            request.ddp_find_unused_parameters = False
        if plan.checkpoint or not plan.eval_dataset:
            request.eval_on_start = False  # it was at the first start; or there is nothing to evaluate on
        if request.prefetch:
            report.say_prefetched(request, plan)
            return
        if request.preflight:
            return
        if plan.finished_steps is not None:
            if is_main:
                report.say_finished(request.output_dir, plan.finished_steps)
            return
        if request.hub_token:
            # Where the hub's client looks for it: checkpoints hold the arguments, and wandb keeps the command line.
            sys.argv = [word.replace(request.hub_token, "…") for word in sys.argv]
            os.environ["HF_TOKEN"], request.hub_token = request.hub_token, None
        _, script_args, training_args, model_args = parser.make(request)
    except RequestError as error:
        # On a second node, what is wrong may be that node alone (a file that is not there).
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(*(f"rl_grpo.py: {line}" for line in error.args), sep="\n", file=sys.stderr)
        raise SystemExit(2) from error

    # Not for a check alone: as Python ends it drops its handlers, and a signal would kill it.
    stop = StopTogether()
    if is_main:
        report.open_directory(training_args.output_dir, recipe, plan.run_to_move)
    if "wandb" in training_args.report_to:
        report.prepare_wandb(training_args.output_dir)

    # ------------------------------------------------------------------------------------------------------
    # Model, data and rewards into TRL's trainer
    # ------------------------------------------------------------------------------------------------------
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "use_safetensors": True,  # other formats can hold code
        **(training_args.model_init_kwargs or {}),
    }
    if training_args.use_vllm:
        training_args.generation_kwargs = {
            "stop_token_ids": plan.end_token_ids,
            **(training_args.generation_kwargs or {}),
        }
    trainer = Trainer(
        model=model_args.model_name_or_path,
        reward_funcs=plan.reward_funcs,
        args=training_args,
        train_dataset=plan.train_dataset,
        eval_dataset=plan.eval_dataset,
        processing_class=plan.tokenizer,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    # TRL knows the end tokens that the model's generation config declares; a base model's lacks the template's.
    trainer.eos_token_ids = sorted({*trainer.eos_token_ids, *plan.end_token_ids})
    trainer.model.generation_config.eos_token_id = trainer.eos_token_ids
    if not training_args.use_vllm:
        trainer.generation_config.eos_token_id = trainer.eos_token_ids
        trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids
        # TRL turns compilation off altogether; a static cache is there to be compiled for.
        trainer.generation_config.disable_compile = training_args.cache_implementation != "static"

    run_report = report.RunReport(trainer.reward_func_names)
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(run_report)
    trainer.add_callback(stop)
    # TRL prints a table of all completions at every logging step; the parquet files keep them all anyway.
    trl.trainer.grpo_trainer.print_prompt_completions_sample = run_report.say_sample

    # Where a generation batch is one optimizer step, its micro-batches may be of any completions.
    if training_args.steps_per_generation == training_args.gradient_accumulation_steps:
        trl.trainer.grpo_trainer.shuffle_sequence_dict = padding.longest_first

    shared_prompts.share(trainer)

    # ------------------------------------------------------------------------------------------------------
    # Train, save
    # ------------------------------------------------------------------------------------------------------
    output_dir = training_args.output_dir
    try:
        with checkpoints.disk_may_be_full(output_dir):
            trainer.train(resume_from_checkpoint=plan.checkpoint)
            if stop.agreed:
                trainer.end()
                if is_main:
                    report.say_stopped(output_dir, trainer.state, stop.agreed.name)
                return
            trainer.save_model(output_dir)
            if is_main:
                report.save_state(output_dir, trainer.state)
                checkpoints.seal(Path(output_dir), trainer.state.global_step, "*.safetensors")
            dataset_name = None if os.path.isdir(script_args.dataset_name) else script_args.dataset_name
            trainer.create_model_card(model_name=os.path.basename(output_dir), dataset_name=dataset_name)
    except checkpoints.DiskFull as error:
        print(f"\nrl_grpo.py: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    trainer.end()
    if is_main:
        report.say_summary(output_dir, trainer.state, trainer.reward_func_names)


if __name__ == "__main__":
    main()
