"""The types of the configuration's values, and what all of its sections refuse."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from utils import CONTROL

# The upper limits are far above what anyone means, so that a slip is an error before anything is allocated.
Dim = Annotated[int, Field(ge=1, le=65_536)]  # of a tensor
Few = Annotated[int, Field(ge=1, le=10_000)]  # of which each costs memory
Count = Annotated[int, Field(ge=1, le=10**9)]  # that costs nothing


def _check_name(text: str) -> None:
    """Raise ValueError for a text that can be neither a name nor a path."""
    if CONTROL.search(text):
        raise ValueError("it has control characters, or is not valid Unicode")
    if len(text.encode()) > 4000 or any(len(part.encode()) > 255 for part in re.split(r"[/\\]", text)):
        raise ValueError("it is longer than a path, or a part of a path, can be")


def _expanded(path: object) -> object:
    """A path with the home directory for `~`; raises ValueError if it is empty or there is no such user."""
    if path == "":
        raise ValueError("it is empty; write . for the current folder")
    if not isinstance(path, str) or not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{str(error).rstrip('.')}; write ./~ for a file of that name") from None


# `run.folder=~/runs` reaches a script as it is, because shells replace only a ~ at the start of a word.
UserPath = Annotated[Path, BeforeValidator(_expanded)]
NameOrPath = Annotated[str, AfterValidator(_expanded)]


class Section(BaseModel):
    # An unknown key is an error: a run with a typo would silently use the default. Numbers are accepted as
    # strings, as in run.name=7.
    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        str_min_length=1,
    )

    @field_validator("*", mode="before")
    @classmethod
    def is_plain(cls, value, info: ValidationInfo):
        """Refuse what pydantic would take: true as the number 1, and names that no file can have."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("true and false (in YAML also yes, no, on, off) are no value for this key")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and item.bit_length() > 300:  # Python refuses to write 4,300 digits
                raise ValueError("it is too large a number")
            if isinstance(item, str | Path):
                _check_name(str(item))
        return value
