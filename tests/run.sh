#!/usr/bin/env bash
# The one test command: installs what is missing, then checks style and runs every test. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRA_REQUIREMENTS=tests/requirements.txt
# shellcheck source=setup.sh
source ./setup.sh

ruff check .
ruff format --check .
shellcheck ./*.sh ./*.slurm tests/*.sh .ci/run
# Two files at a time: most of a launch is one process that imports.
python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
