#!/usr/bin/env bash
# Train on this machine, or on this node of a SLURM step: set up the environment, then r1zero/launch.py picks a recipe
# and an accelerate config for the hardware and trains.
#
#   bash rl_grpo.sh                                        # no GPU: the toy; one or more: Qwen2.5 on GSM8K
#   bash rl_grpo.sh --learning_rate 1e-6 --seed 1          # arguments go to rl_grpo.py
#   CONFIG=my.yaml NUM_PROCESSES=4 bash rl_grpo.sh
#   bash rl_grpo.sh --prefetch                             # only download, for machines without a network
#
# Environment variables, and what they are if unset:
#
#   CONFIG             recipe: the toy without a GPU, else by the memory of the smallest GPU: from 70 GB
#                      configs/qwen2.5-1.5b-gsm8k.yaml, from 20 GB …-1.5b-gsm8k-lora, below …-0.5b-gsm8k-lora
#   ACCELERATE_CONFIG  configs/accelerate/{cpu,single_gpu,zero2}.yaml for 0, 1, more GPUs
#   NUM_PROCESSES      processes per node: one per GPU; without a GPU 1, 2 or 4, which together use all cores
#   EVALUATE           1 evaluates and plots the finished run: 1 for the toy, else 0 (a large model takes hours)
#   MAIN_PROCESS_PORT  where the processes meet: any free port; on several nodes one derived from the job's id
#
# SIGTERM, SIGUSR1 or Ctrl-C stops the training after the current step with a checkpoint; the first two with exit code 0.
# A second Ctrl-C stops at once. If the evaluation or the plots at the end fail, the exit code is 1.
set -euo pipefail
trap '' USR1 # until there is a training to stop; a batch script sends it more than once
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=r1zero/setup.sh
source r1zero/setup.sh
exec python -m r1zero.launch "$@"
