"""Read a request: a YAML recipe, the command line over it, TRL's defaults under both.

The recipe holds the same keys as the command line and is checked the same way: an unknown key, or a value
that is not of its key's type, is refused with the closest real key instead of being carried into a training.
"""

import argparse
import difflib
import math
import os
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

# Of one start, not of the run: they are not part of its recipe. The token is also a secret.
NOT_RECIPE = {
    "config",
    "preflight",
    "num_processes",
    "accelerate_config",
    "prefetch",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "hub_token",
}


class RequestError(ValueError):
    """The request was wrong; the exit code is 2.

    Each argument is one line that says what is wrong and how to mend it.
    """

    def __str__(self) -> str:
        return "\n".join(self.args)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the keys, and the script's own description as it is written."""


class RecipeParser(TrlParser):
    """TRL's parser over dataclasses, which refuses in one line.

    `parser.read(argv)` gives every field as a namespace, so that a request can be checked before any dataclass
    is made (`GRPOConfig` claims devices when it is); `parser.make(request)` then makes the dataclasses.
    """

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.add_argument("--config", metavar="RECIPE.yaml", help="the recipe; the command line overrides its keys")
        # By key; of the two that a boolean with a `--no_` form has, the first.
        self.actions: dict[str, argparse.Action] = {}
        for action in self._actions:
            self.actions.setdefault(action.dest, action)
        self.library_defaults = vars(self.parse_known_args([])[0])
        hints = {name: kind for one in dataclass_types for name, kind in get_type_hints(one).items()}
        # Only where that is the default as well: TRL lets `num_generations` be null, and nothing works with it.
        self.may_be_null = {name for name in self.actions if self.library_defaults.get(name) is None}
        self.may_be_null |= {"dtype", "report_to"}
        # Given as one text on the command line, and a list or a mapping to the dataclass.
        self.may_be_nested = {
            name for name, kind in hints.items() if {dict, list} & {get_origin(one) or one for one in get_args(kind)}
        }

    def error(self, message: str):
        raise RequestError(message)

    def read(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Read command line over recipe over defaults.

        Args:
            argv: the arguments after the script's name; `sys.argv`'s if None.

        Raises:
            RequestError: no such recipe, no mapping in it, an unknown key, or a value of the wrong type.
        """
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.error = self.error
        first.add_argument("--config")
        config = first.parse_known_args(argv)[0].config
        if config is not None:
            self.set_defaults_with_config(**self._read_yaml(config))
        request, unknown = self.parse_known_args(argv)
        if unknown:
            key = unknown[0].split("=")[0]
            if not key.startswith("--"):
                raise RequestError(f"unexpected argument {unknown[0]!r}: arguments are given as --key value")
            raise RequestError(f"unknown argument {key}{self._closest(key[2:], '--')}")
        return request

    def make(self, request: argparse.Namespace) -> tuple:
        """The dataclasses of a request, in the parser's order.

        Raises:
            RequestError: one of them refuses its values.
        """
        values = {key: value for key, value in vars(request).items() if key != "config"}
        try:
            return self.parse_dict(values)
        except ValueError as error:
            raise RequestError(" ".join(str(error).split())) from error

    def resolve(self, request: argparse.Namespace) -> dict:
        """The request as a recipe: every key whose value is not the library's default, in the parser's order."""
        return {
            key: value
            for key, value in vars(request).items()
            if key not in NOT_RECIPE and value != self.library_defaults[key]
        }

    def _read_yaml(self, path: str) -> dict:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise RequestError(f"there is no recipe {path}; there are {those_in('configs')}") from None
        except UnicodeDecodeError as error:
            raise RequestError(f"{path} is no text file in UTF-8: {error.reason} at byte {error.start}") from error
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise RequestError(f"{path} must hold `key: value` lines, see configs/toy.yaml")
            made = loader.construct_object
            entries = [(k.start_mark.line + 1, made(k, deep=True), made(v, deep=True)) for k, v in root.value]
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error)
            raise RequestError(f"{path}{where}: not valid YAML: {' '.join(problem.split())}") from error

        recipe, first = {}, {}
        for line, key, value in entries:
            where = f"{path}, line {line}"
            if key == "env":  # TRL's own key for environment variables
                if not isinstance(value, dict):
                    raise RequestError(f"{where}: env must hold `NAME: value` lines")
                os.environ.update({str(name): str(one) for name, one in value.items()})
                continue
            if not isinstance(key, str) or key not in self.actions or key in ("help", "config"):
                raise RequestError(f"{where}: unknown key {key!r}{self._closest(str(key), '')}")
            if key in first:
                raise RequestError(f"{where}: {key} is there already, on line {first[key]}: keep one of the two")
            first[key] = line
            if value is None and key not in self.may_be_null:
                raise RequestError(f"{where}: {key} has no value: give it one, or leave the line out")
            try:
                recipe[key] = _typed(self.actions[key], value, key in self.may_be_nested)
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise RequestError(f"{where}: {key}: {error}") from error
        return recipe

    def _closest(self, key: str, prefix: str) -> str:
        closest = difflib.get_close_matches(key.replace("-", "_"), self.actions, n=1)
        return f": did you mean {prefix}{closest[0]}?" if closest else " (see --help for those there are)"


def those_in(folder: str) -> str:
    """The YAML files of a folder of this repository, as one would name them."""
    return ", ".join(f"{folder}/{file.name}" for file in sorted((Path(__file__).parent / folder).glob("*.yaml")))


def _typed(action: argparse.Action, value, may_be_nested: bool):
    """A value from YAML as the command line would have read it.

    `3e-6`, which YAML takes for a text, becomes a number; one value stands for a list of one; `no`, which YAML
    takes for False, is the word where the choices have it.
    """
    if value is None:
        return None
    if action.nargs == "+":
        items = value if isinstance(value, list) else [value]
        if not items or any(isinstance(item, (list, dict)) or item is None for item in items):
            raise ValueError(f"takes a list of values, not {value!r}")
        return [_convert(action, item) for item in items]
    if isinstance(value, (list, dict)):
        if may_be_nested:
            return value
        raise ValueError(f"takes one value, not {value!r}")
    return _convert(action, value)


def _convert(action: argparse.Action, value):
    if isinstance(value, bool):
        if action.choices is not None:
            value = "yes" if value else "no"
        elif action.type is str:
            raise ValueError(f"takes a text, and YAML reads {value} here: put it in quotes")
    try:
        converted = action.type(str(value))
    except ValueError:
        kind = {"int": "a whole number", "float": "a number"}.get(action.type.__name__, action.type.__name__)
        raise ValueError(f"{value!r} is not {kind}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError(f"{value!r} is not a finite number")
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, action.choices))}")
    return converted
