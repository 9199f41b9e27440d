"""The configuration from YAML files and the command line: `section.key=value` overrides, errors, --help."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from config import Config, Section
from utils import UserError

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` overrides.

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown, or a value is not allowed.
    """
    if not path.is_file():
        raise UserError(f"no configuration at {path}; pass config.yaml or one of configs/")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return make_config(values, overrides, str(path))


def make_config(values: dict, overrides: Sequence[str] = (), source: str = "the configuration") -> Config:
    """Validate a dictionary of sections, with overrides on top; raises UserError as `load_config` does."""
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise UserError(f"{source}: expected sections with keys under them, as in config.yaml")
    values = {section: dict(keys) for section, keys in values.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise UserError(
                f"{override!r} is not an override; write section.key=value, such as train.epochs=20"
            )
        try:
            values.setdefault(section, {})[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{override!r}: the value is not valid YAML; put it in quotes") from None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error.errors()[0])}") from None


def _explain(problem: ErrorDetails) -> str:
    """A pydantic error as one sentence: key, value, what is allowed, nearest spelling."""
    path = [str(part) for part in problem["loc"] if not isinstance(part, int)]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = all_keys() if len(path) > 1 else list(Config.model_fields)
        near = difflib.get_close_matches(key, known, 1, cutoff=0.4)
        kind = "key" if len(path) > 1 else "section"
        return f"unknown {kind} {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; see --help")
    message = problem["msg"].removeprefix("Value error, ")
    if not path:
        return message
    field = all_keys().get(key)
    about = f" ({field.description})" if field else ""
    return f"{key}={problem['input']!r}: {message[0].lower()}{message[1:]}{about}"


def all_keys() -> dict[str, FieldInfo]:
    """`section.key` -> field, for all keys."""
    return {
        f"{section}.{name}": field
        for section, info in Config.model_fields.items()
        for name, field in cast(type[Section], info.annotation).model_fields.items()
    }


def keys_help(sections: Sequence[str] = tuple(Config.model_fields)) -> str:
    """The table of keys that `--help` ends with."""
    lines = ["configuration keys, for the YAML file or as section.key=value on the command line (default):"]
    for key, field in all_keys().items():
        if key.split(".")[0] in sections:
            default = field.default if field.default is not None else "empty"
            lines.append(f"  {key:<25} {field.description} ({default})")
    return "\n".join(lines)


def argument_parser(description: str, sections: Sequence[str]) -> argparse.ArgumentParser:
    """A parser whose help ends with the keys of `sections`."""
    return argparse.ArgumentParser(
        description=description,
        epilog=keys_help(sections),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_parser(description: str, sections: Sequence[str]) -> argparse.ArgumentParser:
    """`argument_parser` with `--config` and overrides, for scripts that read a configuration file."""
    parser = argument_parser(description, sections)
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="YAML file (default: config.yaml)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the configuration"
    )
    return parser
