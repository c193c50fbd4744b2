#!/usr/bin/env bash
# The one test command: installs what is missing, then checks style and runs every test. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRA_REQUIREMENTS=tests/requirements.txt
# shellcheck source=r1zero/setup.sh
source r1zero/setup.sh

ruff check .
ruff format --check .
shellcheck ./*.sh ./*.slurm r1zero/*.sh tests/*.sh .ci/run
# DeepSpeed compiles what its processes talk through on CPUs at its first start (a minute): not within a test's time.
DS_ACCELERATOR=cpu python -c \
    'from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)' >/dev/null
# Three files at a time, also on two cores: much of a launch is waiting, for a step, a signal or a time limit.
python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder "$@"
