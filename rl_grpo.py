"""Train a language model to reason on GSM8K with GRPO and rule-based rewards, as in DeepSeek-R1-Zero.

    python rl_grpo.py --config configs/toy.yaml
    python rl_grpo.py --config configs/qwen2.5-1.5b-gsm8k.yaml --learning_rate 1e-6 --seed 1
    accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 4 \\
        rl_grpo.py --config configs/qwen2.5-1.5b-gsm8k.yaml
    python rl_grpo.py --config configs/toy.yaml --preflight        # check everything, train nothing
    python rl_grpo.py --config configs/qwen2.5-1.5b-gsm8k.yaml --prefetch      # for machines without a network

Every field of TRL's GRPOConfig and ModelConfig is an argument and a recipe key; the command line overrides the recipe.
The same command resumes from the last checkpoint. Exit codes: 0 done, or stopped by a signal with a checkpoint; 2 the
request was wrong.
"""

import os
import sys
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from trl import get_peft_config

from r1zero import checkpoints, console, data, preflight, processes, run_directory, tracking
from r1zero.arguments import make_parser
from r1zero.recipe import RequestError
from r1zero.signals import StopTogether
from r1zero.trainer import Trainer, load_model
from rewards import REWARDS


def main(argv: list[str] | None = None) -> None:
    console.quieten()
    parser = make_parser(__doc__)
    is_main = os.environ.get("RANK", "0") == "0"

    # The request: recipe, command line, and every check that needs no weights
    try:
        request = parser.read(argv)
        recipe = parser.resolve(request)
        plan = preflight.check(request, recipe, REWARDS)
        if is_main and (request.preflight or not plan.errors):
            console.say_plan(plan, request.preflight)
        if plan.errors:
            raise RequestError(*plan.errors)
        if request.preflight:
            return
        if request.prefetch:
            return print(f"{request.model_name_or_path} and {request.dataset_name} are complete in {HF_HOME}")
        processes.settle(request, plan)
        _, script_args, training_args, model_args = parser.make(request)
        run_directory.agree(plan)
        training_args.eval_on_start &= plan.checkpoint is None  # else the first start did it
        if plan.finished_steps is not None:
            return console.say_finished(request.output_dir, plan.finished_steps) if is_main else None
        with training_args.main_process_first(desc="data"):  # the others read what the first of their node has cached
            if plan.train_dataset is None:
                plan.train_dataset, plan.eval_dataset = data.prepare(request)
    except RequestError as error:
        # The first rank of each node: the problem may be on that node only, such as a missing file.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(*(f"rl_grpo.py: {line}" for line in error.args), sep="\n", file=sys.stderr)
        raise SystemExit(2) from error

    stop = StopTogether()
    output_dir = training_args.output_dir
    if is_main:
        run_directory.open_directory(output_dir, recipe, plan.run_to_move)
    if "wandb" in training_args.report_to:
        tracking.prepare_wandb(output_dir)

    # Model, data and rewards
    trainer = Trainer(
        model=load_model(model_args, training_args, plan.end_token_ids),
        reward_funcs=plan.reward_funcs,
        args=training_args,
        train_dataset=plan.train_dataset,
        eval_dataset=plan.eval_dataset,
        processing_class=plan.tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[stop],
    )

    # Train, save
    try:
        with checkpoints.disk_may_be_full(output_dir, plan.checkpoint_bytes):
            trainer.train(resume_from_checkpoint=plan.checkpoint)
            if stop.agreed:
                trainer.end()
                return console.say_stopped(output_dir, trainer.state, stop.agreed.name) if is_main else None
            trainer.save_model(output_dir)
            if is_main:
                run_directory.save_state(output_dir, trainer.state)
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
        console.say_summary(output_dir, trainer.state, trainer.reward_func_names)


if __name__ == "__main__":
    main()
