#!/usr/bin/env bash
# The one test command: installs what is missing, then checks style and runs every test. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRA_REQUIREMENTS=tests/requirements.txt
# shellcheck source=setup.sh
source ./setup.sh

ruff check .
ruff format --check .
shellcheck ./*.sh tests/*.sh .ci/run
python -m pytest "$@"
