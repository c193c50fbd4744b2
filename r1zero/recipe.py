"""Read a request: the command line over a YAML recipe over TRL's defaults.

`TrlParser` does this; added here: an unknown key or a value of the wrong type is refused with file and line and the
closest real key, and the request is available before any dataclass is made, because `GRPOConfig` claims devices.
"""

import argparse
import difflib
import math
import os
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

# These belong to one start and not to the run's recipe. The token is also a secret.
NOT_RECIPE = {"config", "preflight", "num_processes", "accelerate_config", "prefetch", "overwrite_output_dir",
              "resume_from_checkpoint", "hub_token"}  # fmt: skip


class RequestError(Exception):
    """The request was wrong; the exit code is 2. Each argument is one line with a problem and its fix."""

    def __str__(self) -> str:
        return "\n".join(self.args)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's description as it is written."""


class RecipeParser(TrlParser):
    """TRL's parser over dataclasses: `read` returns all fields as a namespace, `make` then makes the dataclasses."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.add_argument("--config", metavar="RECIPE.yaml", help="recipe; the command line overrides its keys")
        self.actions = {action.dest: action for action in reversed(self._actions)}  # of --key and --no_key the first
        self.defaults = vars(self.parse_known_args([])[0])
        # One string on the command line, a list or mapping for the dataclass.
        hints = {key: get_args(hint) for one in dataclass_types for key, hint in get_type_hints(one).items()}
        self.may_be_nested = {key for key, of in hints.items() if {dict, list} & {get_origin(one) or one for one in of}}

    def error(self, message: str):
        raise RequestError(message)

    def read(self, argv: list[str] | None = None) -> argparse.Namespace:
        """The command line (None: `sys.argv`) over the recipe over the defaults; `RequestError` if one is wrong."""
        if (config := self.parse_known_args(argv)[0].config) is not None:
            self.set_defaults_with_config(**self._read_yaml(config))
        request, unknown = self.parse_known_args(argv)
        if unknown and not unknown[0].startswith("--"):
            raise RequestError(f"unexpected argument {unknown[0]!r}: arguments are given as --key value")
        if unknown:
            key = unknown[0].split("=")[0]
            raise RequestError(f"unknown argument {key}{self._closest(key[2:], '--')}")
        return request

    def make(self, request: argparse.Namespace) -> tuple:
        """The dataclasses of a request, in the parser's order; `RequestError` if one rejects its values."""
        try:
            return self.parse_dict(vars(request), allow_extra_keys=True)
        except ValueError as error:
            raise RequestError(" ".join(str(error).split())) from error

    def resolve(self, request: argparse.Namespace) -> dict:
        """The request as a recipe: each key that differs from the library's default, in the parser's order."""
        return {key: one for key, one in vars(request).items() if key not in NOT_RECIPE and one != self.defaults[key]}

    def _read_yaml(self, path: str) -> dict:
        try:
            loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
            if not isinstance(root := loader.get_single_node(), yaml.MappingNode):
                raise RequestError(f"{path} must hold `key: value` lines, see configs/toy.yaml")
            pairs = loader.construct_pairs(root, deep=True)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise RequestError(f"there is no recipe {path}; there are {those_in('configs')}") from None
        except UnicodeDecodeError as error:
            raise RequestError(f"{path} is not a UTF-8 text file: {error.reason} at byte {error.start}") from error
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
            where = f"{path}, line {mark.line + 1}" if mark else path
            raise RequestError(f"{where}: not valid YAML: {' '.join(problem.split())}") from error

        recipe, lines = {}, {}
        for (node, _), (key, value) in zip(root.value, pairs, strict=True):
            where = f"{path}, line {(line := node.start_mark.line + 1)}"
            if key == "env":  # TRL's own key for environment variables
                if not isinstance(value, dict):
                    raise RequestError(f"{where}: env must hold `NAME: value` lines")
                os.environ.update({str(name): str(one) for name, one in value.items()})
                continue
            if not isinstance(key, str) or key not in self.actions or key in ("help", "config"):
                raise RequestError(f"{where}: unknown key {key!r}{self._closest(str(key), '')}")
            if key in recipe:
                raise RequestError(f"{where}: {key} is already on line {lines[key]}: keep one of the two")
            # TRL's types also allow a null `num_generations`, which fails later.
            if value is None and self.defaults[key] is not None and key not in ("dtype", "report_to"):
                raise RequestError(f"{where}: {key} has no value: give it one, or leave the line out")
            try:
                recipe[key], lines[key] = _convert(self.actions[key], value, key in self.may_be_nested), line
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise RequestError(f"{where}: {key}: {error}") from error
        return recipe

    def _closest(self, key: str, prefix: str) -> str:
        closest = difflib.get_close_matches(key.replace("-", "_"), self.actions, n=1)
        return f": did you mean {prefix}{closest[0]}?" if closest else " (--help lists them)"


def those_in(folder: str) -> str:
    """The YAML files in a folder of this repository, for messages."""
    return ", ".join(f"{folder}/{file.name}" for file in sorted((Path(__file__).parent.parent / folder).glob("*.yaml")))


def _convert(action: argparse.Action, value, may_be_nested: bool):
    """A YAML value as the command line would read it; a value alone becomes a list of one where a list is meant."""
    is_list = action.nargs == "+"
    if value is None or (may_be_nested and not is_list and isinstance(value, (list, dict))):
        return value
    items = value if is_list and isinstance(value, list) else [value]
    if not items or any(item is None or isinstance(item, (list, dict)) for item in items):
        raise ValueError(f"takes {'a list of values' if is_list else 'one value'}, not {value!r}")
    converted = []
    for item in items:
        if isinstance(item, bool) and action.choices:
            item = "yes" if item else "no"  # YAML reads `no` as False
        if isinstance(item, bool) and action.type is str:
            raise ValueError(f"takes a text, but YAML reads {item}: put it in quotes")
        try:
            converted.append(one := action.type(str(item)))  # `3e-6` is a string in YAML
        except ValueError:
            name = action.type.__name__  # TRL wraps the types of fields that may be null
            kind = {"int": "a whole number", "float": "a number"}.get(name, name)
            raise ValueError(f"{item!r} is not {kind}") from None
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{item!r} is not a finite number")
        if action.choices and one not in action.choices:
            raise ValueError(f"{item!r} is not one of {', '.join(map(str, action.choices))}")
    return converted if is_list else converted[0]
