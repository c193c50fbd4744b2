#!/usr/bin/env bash
# Train on this machine: everything that is needed first, then a recipe and a topology that fit the hardware.
#
#   bash rl_grpo.sh                                        # no GPU: the toy; one or more: Qwen2.5-1.5B
#   bash rl_grpo.sh --learning_rate 1e-6 --seed 1          # arguments go to rl_grpo.py
#   CONFIG=my.yaml NUM_PROCESSES=4 bash rl_grpo.sh
#
#   CONFIG             recipe                     configs/toy.yaml without a GPU, else configs/qwen2.5-1.5b-gsm8k.yaml
#   ACCELERATE_CONFIG  topology                   configs/accelerate/{cpu,single_gpu,zero2}.yaml for 0, 1, more GPUs
#   NUM_PROCESSES      processes                  one a GPU; without a GPU 1, 2 or 4, together using all cores
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=setup.sh
source ./setup.sh

cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
if ((gpus == 0)); then
    CONFIG=${CONFIG:-configs/toy.yaml}
    ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-configs/accelerate/cpu.yaml}
    # Processes generate faster than threads, but the batch must divide by them; threads take what is left.
    fitting=1
    for count in 2 4; do
        if ((cores % count == 0)); then fitting=$count; fi
    done
    NUM_PROCESSES=${NUM_PROCESSES:-$fitting}
    # Torch would use one thread a process under a launcher. Accelerate does not pass on that there is no GPU.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NUM_PROCESSES ? cores / NUM_PROCESSES : 1))}
    export ACCELERATE_USE_CPU=true
else
    CONFIG=${CONFIG:-configs/qwen2.5-1.5b-gsm8k.yaml}
    NUM_PROCESSES=${NUM_PROCESSES:-$gpus}
    topology=single_gpu
    if ((NUM_PROCESSES > 1)); then topology=zero2; fi
    ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-configs/accelerate/$topology.yaml}
fi

# Checked on one process first: a launcher would bury the one line that says what is wrong with the request.
# Where all that is wrong is that the toy's base model is not there yet, it is made.
until refusal=$(python rl_grpo.py --config "$CONFIG" "$@" --preflight --num_processes "$NUM_PROCESSES" 2>&1 >/dev/null); do
    status=$?
    if [[ $refusal != *"python toy.py makes it"* ]]; then
        echo "$refusal" >&2
        exit "$status"
    fi
    OMP_NUM_THREADS=$cores python toy.py # one process, all cores
done

echo "rl_grpo.sh: $CONFIG on $NUM_PROCESSES × $(basename "$ACCELERATE_CONFIG" .yaml)"
exec accelerate launch --config_file "$ACCELERATE_CONFIG" --num_processes "$NUM_PROCESSES" \
    --main_process_port "${MAIN_PROCESS_PORT:-0}" rl_grpo.py --config "$CONFIG" "$@"
