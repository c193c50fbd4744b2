#!/usr/bin/env bash
# Train on this machine, or on this node's part of a SLURM step: everything that is needed first, then a recipe and a
# topology that fit the hardware.
#
#   bash rl_grpo.sh                                        # no GPU: the toy; one or more: Qwen2.5-1.5B
#   bash rl_grpo.sh --learning_rate 1e-6 --seed 1          # arguments go to rl_grpo.py
#   CONFIG=my.yaml NUM_PROCESSES=4 bash rl_grpo.sh
#   bash rl_grpo.sh --prefetch                             # only download, for machines without a network
#
#   CONFIG             recipe                     configs/toy.yaml without a GPU, else configs/qwen2.5-1.5b-gsm8k.yaml
#   ACCELERATE_CONFIG  topology                   configs/accelerate/{cpu,single_gpu,zero2}.yaml for 0, 1, more GPUs
#   NUM_PROCESSES      processes on each node     one a GPU; without a GPU 1, 2 or 4, together using all cores
#   EVALUATE           1: measure and draw after   1 for the toy, else 0 (a large model takes its time)
#   MAIN_PROCESS_PORT  where the processes meet   any free port; on several nodes one that follows from the job's id
#
# SIGTERM, SIGUSR1 or Ctrl-C ends the training after the current step with a checkpoint; the first two with exit code 0.
set -euo pipefail
trap '' USR1 # until there is a training to stop; a batch script sends it more than once
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=setup.sh
source ./setup.sh

arguments=()
prefetch=
for argument in "$@"; do
    if [[ $argument == --prefetch ]]; then prefetch=yes; else arguments+=("$argument"); fi
done
if [[ $prefetch ]]; then
    recipe=${CONFIG:-configs/qwen2.5-1.5b-gsm8k.yaml} # what a login node fetches is for nodes with GPUs
    python rl_grpo.py --config "$recipe" "${arguments[@]}" --prefetch
    echo "On the cluster, with your account (--nodes=2 for more than one node):"
    printf '  %ssbatch -A ACCOUNT run_rl_grpo.cardinal.slurm' "${CONFIG:+CONFIG=$(printf %q "$CONFIG") }"
    if ((${#arguments[@]})); then printf ' %q' "${arguments[@]}"; fi
    echo
    exit
fi

# In a SLURM step: which of its nodes this is, and where the first one listens. SLURM's own address of a node is one
# that the others reach. (A batch script without srun is no step, and one node.)
nodes=${SLURM_STEP_NUM_NODES:-1}
node=${SLURM_NODEID:-0}
rendezvous=(--num_machines 1 --main_process_port "${MAIN_PROCESS_PORT:-0}")
if ((${SLURM_STEP_NUM_TASKS:-1} != nodes)); then
    echo "rl_grpo.sh: $SLURM_STEP_NUM_TASKS tasks on $nodes nodes: one a node, please (--ntasks-per-node=1)" >&2
    exit 2
fi
leave() {
    # On several nodes srun ends the step with the first task that fails, and may drop what that has just written.
    if (($1 && nodes > 1)); then sleep 2; fi
    exit "$1"
}
if ((nodes > 1)); then
    first=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
    address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') || true # some clusters hide it
    address=${address:-$first}
    port=${MAIN_PROCESS_PORT:-$((10000 + SLURM_JOB_ID % 20000))} # below the ports that systems hand out by themselves
    rendezvous=(--num_machines "$nodes" --machine_rank "$node" --main_process_ip "$address"
        --main_process_port "$port" --same_network)
else
    node=0
fi

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
    # Torch would use one thread a process under a launcher.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NUM_PROCESSES ? cores / NUM_PROCESSES : 1))}
else
    CONFIG=${CONFIG:-configs/qwen2.5-1.5b-gsm8k.yaml}
    NUM_PROCESSES=${NUM_PROCESSES:-$gpus}
    topology=single_gpu
    if ((nodes * NUM_PROCESSES > 1)); then topology=zero2; fi
    ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-configs/accelerate/$topology.yaml}
fi
processes=$((nodes * NUM_PROCESSES))

# Checked on one process first: a launcher would bury the one line that says what is wrong with the request.
# Where all that is wrong is that the toy's base model is not there yet, the first node makes it.
until refusal=$(LOCAL_WORLD_SIZE=$NUM_PROCESSES MAIN_PROCESS_PORT=${port:-${MAIN_PROCESS_PORT:-0}} python rl_grpo.py --config "$CONFIG" "$@" --preflight --num_processes "$processes" \
    --accelerate_config "$ACCELERATE_CONFIG" 2>&1 >/dev/null); do
    status=$?
    if grep -qv "python toy.py makes it" <<<"$refusal"; then
        if ((node > 0)); then refusal="$SLURMD_NODENAME: $refusal"; fi
        echo "$refusal" >&2
        leave "$status"
    fi
    if ((node > 0)); then sleep 5; else OMP_NUM_THREADS=$cores python toy.py; fi # one process, all cores
done

if [[ ! ${EVALUATE:-} ]]; then
    if [[ $CONFIG -ef configs/toy.yaml ]]; then EVALUATE=1; else EVALUATE=0; fi
fi
FINISHED_FILE=$(mktemp) # rl_grpo.py writes the run's directory here at its end
export FINISHED_FILE
trap 'rm -f "$FINISHED_FILE"' EXIT

place=
if ((nodes > 1)); then place=" on $nodes nodes, meeting at $address:$port"; fi
if ((node == 0)); then
    echo "rl_grpo.sh: $CONFIG on $processes × $(basename "$ACCELERATE_CONFIG" .yaml)$place"
fi

# Each training process stops by itself on SIGTERM and SIGUSR1, see signals.py. The launcher between must not: torchrun
# would answer with a traceback and kill what has not ended after 30 s. So it ignores them, and they are passed on from
# here, again and again, since a process that is still starting ignores them too.
(
    trap '' INT TERM USR1
    PET_SIGNALS_TO_HANDLE=SIGHUP,SIGQUIT exec accelerate launch --config_file "$ACCELERATE_CONFIG" \
        --num_processes "$processes" "${rendezvous[@]}" rl_grpo.py --config "$CONFIG" "$@"
) &
launcher=$!
stopping=
interrupts=0
# shellcheck disable=SC2329 # the trap calls it
interrupt() {
    stopping=yes
    if ((++interrupts > 1)); then
        signal_workers SIGKILL
        kill -KILL "$launcher"
    else
        echo " stopping after this step, with a checkpoint; Ctrl-C again stops at once" >&2
    fi
}
signal_workers() { # they may just have ended
    python -c "import psutil, signal; [worker.send_signal(signal.$1) for worker in \
        psutil.Process($launcher).children()]" 2>/dev/null || true
}
trap 'stopping=yes' TERM USR1
trap interrupt INT
while kill -0 "$launcher" 2>/dev/null; do
    if [[ $stopping ]]; then
        signal_workers SIGUSR1
        sleep 2 || true
    else
        wait "$launcher" || true
    fi
done
status=0
wait "$launcher" || status=$?
if ((interrupts)); then # as a signal's end, so that a loop around this ends too
    trap - INT
    kill -INT $$
fi
if [[ $EVALUATE == 1 && -s $FINISHED_FILE ]]; then
    trap - INT TERM
    trap '' USR1
    run=$(<"$FINISHED_FILE")
    export OMP_NUM_THREADS=$cores # one process
    # Sampled, as in training: greedy decoding may hide what was learned, see the README.
    python evaluate.py "$run" --with_base --num_samples 8 --temperature 1 || true
    if figures=$(python plots.py "$run"); then echo "curves in $(dirname "${figures%%$'\n'*}")"; fi
fi
leave "$status"
