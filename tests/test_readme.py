"""The README says what is there: its files exist, and its commands are accepted by what they call."""

import re
import shlex

import pytest
from conftest import ROOT

import evaluate
import gsm8k
import plots
import rewards
import rl_grpo

README = (ROOT / "README.md").read_text()
COMMANDS = [
    re.sub(
        r"^for (\w+) in (\w+).*; do (.*); done$", lambda m: m[3].replace(f"${m[1]}", m[2]), line.split("#")[0].strip()
    )
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_files_that_exist_and_arguments_that_are_accepted(command):
    words = shlex.split(command)
    for word in words:
        path = word.split("=")[-1]
        if path.endswith((".py", ".sh", ".slurm", ".yaml")):
            assert (ROOT / path).is_file(), path
    for script in ("rl_grpo.py", "rl_grpo.sh", "run_rl_grpo.cardinal.slurm"):
        if script in words and "--help" not in words:
            rl_grpo.make_parser().read(words[words.index(script) + 1 :])
    if "evaluate.py" in words:
        evaluate.make_parser().parse_args(words[words.index("evaluate.py") + 1 :])
    if "plots.py" in words:
        plots.make_parser().parse_args(words[words.index("plots.py") + 1 :])


def test_the_figures_are_there_and_described():
    figures = re.findall(r"!\[(.*?)\]\((.*?)\)", README)
    assert [path for _, path in figures] == [f"img/{name}.png" for name in plots.FIGURES]
    for description, path in figures:
        assert len(description) > 20 and (ROOT / path).stat().st_size > 10_000


def test_every_fault_names_a_test_that_is_there():
    rows = re.findall(r"^\| .* \| (`.*`) \|$", (ROOT / "tests" / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 12
    for row in rows:
        file = None
        for name in re.findall(r"`(.*?)`", row):
            path, _, test = name.rpartition("::") if "::" in name else (name, "", "")
            if name.endswith(".py"):
                path = name
            if path.endswith(".py"):
                file = (ROOT / "tests" / path).read_text()
            test = (test or (name if not name.endswith(".py") else "")).rstrip("…")
            assert f"def {test}" in file or not test, name


def test_the_file_tree_names_files_that_exist():
    tree = README.split("## What is where")[1].split("```")[1]
    names = [line.split()[0] for line in tree.splitlines()[1:] if line.strip()]
    assert len(names) > 10
    for name in names:
        assert list(ROOT.glob(name.rstrip("/"))), name
    for path in ROOT.glob("*.py"):
        assert path.name in names, f"{path.name} is not in the README's tree"


def test_the_rewards_table_is_the_dict():
    table = README.split("## Rewards")[1].split("The first four")[0]
    assert re.findall(r"`([a-z_]+)`", table.split("|---|---|")[1]) == list(rewards.REWARDS)


def test_the_example_reward_works_as_it_is_printed():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    namespace = {"text": rewards.text}
    exec(code, namespace)
    assert namespace["brevity"](["", "x" * 500, [{"role": "assistant", "content": "x" * 2000}]]) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("text", "number"), [("$1,234.00", 1234), ("-7 apples", -7), (r"\boxed{42}", 42), ("6*7 = 42", 42)]
)
def test_the_answers_that_are_said_to_be_read_are(text, number):
    assert text in README and gsm8k.read_number(text) == number
