"""The plan of a run: what the checks found out, so that nothing is read twice."""

from collections import namedtuple
from contextlib import contextmanager
from dataclasses import dataclass, field

from r1zero.recipe import RequestError

Finding = namedtuple("Finding", "status check message", defaults=[""])  # status: `ok`, `warning` or `error`


@dataclass
class Plan:
    """What is known about a run before its weights are loaded; None where a check failed."""

    num_processes: int = 1  # that share a batch
    findings: list[Finding] = field(default_factory=list)  # one per check, and one per warning
    table: list[tuple[str, str]] = field(default_factory=list)  # the plan for a reader: names and texts
    sharding: str = "none"  # of the model among processes: `none`, `zero1`, `zero2`, `zero3` or `fsdp`
    on_cpu: bool = False  # whether the training runs on a CPU
    reward_funcs: list | None = None  # functions, in the recipe's order
    gradient_accumulation_steps: int | None = None  # micro-batches per optimizer step
    config: object = None  # the model's
    tokenizer: object = None  # with the pad token that training uses
    end_token_ids: list[int] | None = None  # each of these tokens ends a completion
    train_dataset: object = None  # columns `prompt` and `solution`
    eval_dataset: object = None  # the same; None without validation
    checkpoint: str | None = None  # path to resume from
    finished_steps: int | None = None  # of the run in the directory, if it is finished
    run_to_move: bool = False  # whether the run in the directory is moved aside first
    checkpoint_bytes: int = 0  # of one checkpoint

    @contextmanager
    def check(self, name: str):
        """Wrap a check: keep its error, so that all problems are reported at once."""
        try:
            yield
            self.findings.append(Finding("ok", name))
        except RequestError as error:
            self.findings.append(Finding("error", name, str(error)))

    def warn(self, check: str, message: str) -> None:
        self.findings.append(Finding("warning", check, message))

    def row(self, name: str, text: str) -> None:
        self.table.append((name, text))

    @property
    def errors(self) -> list[str]:
        """Each problem once; two checks may find the same one."""
        return list(dict.fromkeys(finding.message for finding in self.findings if finding.status == "error"))
