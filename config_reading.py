"""The configuration from YAML files and the command line: `section.key=value` overrides, errors, --help."""

import argparse
import difflib
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from config import Config
from config_types import Section, UserPath
from files import require_regular
from utils import UserError
from yaml_reading import read_yaml

DEFAULT_CONFIG = Path(__file__).parent / "config.yaml"
_LARGEST = 1 << 17  # bytes of a configuration; config.yaml has 1,000
_SHOW = reprlib.Repr()
_SHOW.maxstring = _SHOW.maxother = _SHOW.maxlong = 200


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` overrides.

    Raises:
        UserError: the file is missing or is no YAML, a key is unknown or repeated, or a value is not allowed.
    """
    require_regular(path)
    try:
        size = path.stat().st_size
        text = path.read_text("utf-8") if size <= _LARGEST else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL
        reason = getattr(error, "strerror", error)
        raise UserError(
            f"no configuration at {path} ({reason}); pass config.yaml or one of configs/"
        ) from None
    if size > _LARGEST:
        raise UserError(f"{path} is too large for a configuration; pass config.yaml or one of configs/")
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return make_config({} if values is None else values, overrides, str(path))


def make_config(values: dict, overrides: Sequence[str] = (), source: str = "the configuration") -> Config:
    """Validate a dictionary of sections, with overrides on top; raises UserError as `load_config` does."""
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise UserError(f"{source}: expected sections with keys under them, as in config.yaml")
    values = {section: dict(keys) for section, keys in values.items()}
    shards = [override for override in overrides if re.match(r"data\.captions=.*\.tar$", override)]
    if len(shards) > 1:
        raise UserError(
            f"data.captions is given {len(shards):,} times; put it into quotes, so that the shell leaves its "
            "braces alone: 'data.captions=train-{000..999}.tar'"
        )
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise UserError(
                f"{override!r} is not an override; write section.key=value, such as train.epochs=20"
            )
        place, name = _place(values, section, name)
        try:
            place[name] = text if _is_text(key, text) else read_yaml(text)
        except ValueError:
            raise UserError(f"{override!r}: the value is not valid YAML; put it in quotes") from None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error.errors(include_url=False)[0])}") from None


def _place(values: dict, section: str, name: str) -> tuple[dict, str]:
    """The dictionary that an override changes, and the key in it; `name` may be `PHASE.section.key`."""
    place = values.setdefault(section, {})
    if section == "phases":
        *path, name = name.split(".")
        for part in path:
            place[part] = dict(place.get(part) or {})
            place = place[part]
    return place, name


def _is_text(key: str, text: str) -> bool:
    """Whether the value of an override is a name or a path as it stands, although YAML reads it differently.

    To YAML, 1.50 is 1.5, `on` is true, and in `a #b` a comment begins.
    """
    field = all_keys().get(without_phase(key))
    if field is None or field.annotation not in (str, Path, UserPath | None):
        return False
    return bool(text) and text[0] not in "'\"" and text not in ("null", "~")


def without_phase(key: str) -> str:
    """`section.key` of `phases.NAME.section.key`; another key as it is."""
    return ".".join(key.split(".")[-2:])


def _explain(problem: ErrorDetails) -> str:
    """A pydantic error as one sentence: key, value, what is allowed, nearest spelling."""
    path = [str(part) for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = all_keys() if len(path) > 1 else list(Config.model_fields)
        near = difflib.get_close_matches(key, known, 1, cutoff=0.4)
        kind = "key" if len(path) > 1 else "section"
        return f"unknown {kind} {_SHOW.repr(key)}" + (
            f"; did you mean {near[0]!r}?" if near else "; see --help"
        )
    message = problem["msg"].removeprefix("Value error, ").removesuffix(f" for {Path}")
    if len(path) < 2 and problem["type"] == "value_error":  # of several keys, which the message names
        return message
    field = all_keys().get(key)
    about = f" ({field.description})" if field else ""
    return f"{key}={_shown(problem['input'])}: {message[0].lower()}{message[1:]}{about}"


def _shown(value: object) -> str:
    """The value as Python writes it, shortened."""
    try:
        return _SHOW.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"


def all_keys() -> dict[str, FieldInfo]:
    """`section.key` -> field, for all keys but those of `phases`."""
    return {
        f"{section}.{name}": field
        for section, info in Config.model_fields.items()
        if section != "phases"
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


def repeat_checkpoint(arguments: Sequence[str]) -> list[str]:
    """`--checkpoint a.pth b.pth` as `--checkpoint a.pth --checkpoint b.pth`.

    To argparse, everything after `--checkpoint` would be one, images and overrides included.
    """
    found: list[str] = []
    in_list = follows = False
    for argument in arguments:
        if in_list and not follows:
            in_list = argument.endswith(".pth") or os.path.isfile(os.path.join(argument, "best.pth"))
            found += ["--checkpoint"] * in_list
        found.append(argument)
        follows = argument == "--checkpoint"
        in_list = in_list or follows or argument.startswith("--checkpoint=")
    return found
