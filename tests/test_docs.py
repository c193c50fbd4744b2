"""What the docs promise: files, links, anchors and figures exist, and each command is accepted by what it calls."""

import importlib.util
import re
import shlex

import pytest
import yaml
from conftest import ROOT

import plots
import rewards
from eval import make_parser as make_eval_parser
from r1zero import answers, arguments, processes

README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "tests" / "README.md",
]
CODE_BLOCK = re.compile(r"^```\w*\n.*?^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Every command of a page: the lines of its bash blocks, and the code spans that start like one."""
    lines = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines += [line.split(" # ")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:python|bash|sbatch|accelerate launch) [^`]+)`", CODE_BLOCK.sub("", text))
    loop = re.compile(r"for (\w+) in (\S+).*?; do (.*); done")  # stands for its first round
    return [loop.sub(lambda found: found[3].replace(f"${found[1]}", found[2]), line) for line in lines if line]


def read_request(words: list[str]) -> None:
    config = [] if "--config" in words else ["--config", "configs/toy.yaml"]
    arguments.check(arguments.make_parser().read([*config, *words]))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "command"),
    [
        (page.relative_to(ROOT).as_posix(), command)
        for page in PAGES
        for command in dict.fromkeys(commands(page.read_text()))
    ],
)
def test_a_command_names_files_that_exist_and_arguments_that_are_accepted(page, command):
    words = shlex.split(command)
    for word in words:
        path = word.split("=")[-1]
        if path.endswith((".py", ".sh", ".slurm", ".yaml", ".txt")):
            assert (ROOT / path).is_file(), path
    if "-m" in words and words[words.index("-m") + 1].startswith("r1zero."):
        assert importlib.util.find_spec(words[words.index("-m") + 1])
    script = next((index for index, word in enumerate(words) if word.endswith((".py", ".sh", ".slurm"))), None)
    if script is None or "--help" in words:
        return
    name, options = words[script], words[script + 1 :]
    if name in ("rl_grpo.py", "rl_grpo.sh", "run_rl_grpo.cardinal.slurm"):
        read_request(options)
    elif name == "eval.py":
        make_eval_parser().parse_args(options)
    elif name == "plots.py":
        plots.make_parser().parse_args(options)
    elif name.startswith("benchmarks/"):
        own, _, ours = " ".join(options).partition("--ours")  # what follows is for rl_grpo.py
        known = re.findall(r'add_argument\(\s*"(--\w+)"', (ROOT / name).read_text())
        assert {word for word in own.split() if word.startswith("--")} <= set(known)
        read_request(ours.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", CODE_BLOCK.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target
    for name in re.findall(r"`((?:benchmarks|configs|docs|r1zero|tests)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_the_readme_is_short_and_starts_with_a_curve_a_status_and_two_commands():
    assert len(README.splitlines()) <= 200
    first_screen = README.split("\n## ")[0]
    assert "img/reward.png" in first_screen and "not run on a GPU yet" in first_screen
    assert commands(first_screen) == ["bash rl_grpo.sh", "bash tests/run.sh"]


def test_the_figures_exist_and_are_described():
    figures = re.findall(r"!\[(.*?)\]\((.*?)\)", README)
    assert [path for _, path in figures] == [f"img/{name}.png" for name in plots.FIGURES]
    for description, path in figures:
        assert len(description) > 20 and (ROOT / path).stat().st_size > 10_000


def test_the_file_map_names_every_file_and_nothing_else():
    block = README.split("## File map")[1].split("```")[1]
    names = set()
    for line in block.splitlines()[1:]:
        folder = "r1zero/" if line.startswith("  ") else ""
        names |= {f"{folder}{name}" for name in re.split(r" {2,}", line.strip())[0].split(", ")}
    for name in names:
        assert list(ROOT.glob(name.rstrip("/"))), name
    files = [path for pattern in ("*.py", "*.sh", "*.slurm") for path in ROOT.glob(pattern)]
    files += [path for path in (ROOT / "r1zero").iterdir() if path.suffix in (".py", ".sh")]
    missing = {path.relative_to(ROOT).as_posix() for path in files} - names - {"r1zero/__init__.py"}
    assert not missing, f"not in the README's file map: {missing}"


def test_recipes_and_accelerate_configs_are_all_described():
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml")}
    assert set(re.findall(r"^\| `(configs/\S+)` \|", README, re.MULTILINE)) == recipes
    running = (ROOT / "docs" / "running.md").read_text()
    rows = running.split("| accelerate config | what is split")[1].split("\n\n")[0]
    names = {name for row in rows.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert names == {path.stem for path in (ROOT / "configs" / "accelerate").glob("*.yaml")}


def test_the_launchers_variables_are_those_that_it_reads():
    running = (ROOT / "docs" / "running.md").read_text()
    rows = running.split("| variable | meaning | default |")[1].split("\n\n")[0]
    names = re.findall(r"^\| `([A-Z_]+)` \|", rows, re.MULTILINE)
    assert names == re.findall(r"^#   ([A-Z_]+)  ", (ROOT / "rl_grpo.sh").read_text(), re.MULTILINE)
    launch = (ROOT / "r1zero" / "launch.py").read_text()
    assert all(f'"{name}"' in launch for name in names)


def test_the_rewards_table_is_the_dict():
    table = (ROOT / "docs" / "rewards.md").read_text().split("| name | value |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(rewards.REWARDS)


def test_the_example_reward_works_as_it_is_printed():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    namespace = {"text": rewards.text}
    exec(code, namespace)
    assert namespace["brevity"](["", "x" * 500, [{"role": "assistant", "content": "x" * 2000}]]) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("text", "number"), [("$1,234.00", 1234), ("-7 apples", -7), (r"\boxed{42}", 42), ("6*7 = 42", 42)]
)
def test_the_answers_that_are_said_to_be_read_are(text, number):
    assert f"`{text}`" in (ROOT / "docs" / "rewards.md").read_text() and answers.read_number(text) == number


def test_every_fault_names_a_test_that_exists():
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


def test_versions_are_the_pinned_ones():
    texts = [path.read_text() for path in (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt")]
    pins = {line.split("#")[0].strip() for text in texts for line in text.splitlines()}
    said = [*PAGES, ROOT / ".github" / "workflows" / "tests.yml"]
    named = {pin for page in said for pin in re.findall(r"\b([a-z][a-z0-9-]*==[0-9][0-9.]*[0-9])", page.read_text())}
    assert "torch==2.13.0" in named and named <= pins | {f"vllm=={processes.VLLM}"}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    versions = {repo["repo"].rsplit("/", 1)[1].removesuffix("-pre-commit"): repo["rev"] for repo in hooks}
    assert {f"{name}=={version.removeprefix('v')}" for name, version in versions.items()} <= pins


def test_exact_resuming_is_claimed_for_cpus_only():
    """On CUDA, atomic and flash kernels are not deterministic."""
    for path in (ROOT / "README.md", ROOT / "docs" / "running.md"):
        claims = [line for line in " ".join(path.read_text().split()).split(". ") if "same numbers" in line]
        assert claims and all("On CPUs" in claim for claim in claims), claims
    assert "some GPU kernels are not deterministic" in (ROOT / "docs" / "running.md").read_text()
