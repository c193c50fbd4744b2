"""The library under `rl_grpo.py`, `eval.py` and `plots.py`: one subject per file, each with its own checks."""

import os
import sys

if os.name == "nt":
    print("mini-r1-zero needs Linux or macOS; on Windows run it in WSL", file=sys.stderr)
    raise SystemExit(2)
