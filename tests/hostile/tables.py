"""All tables of inputs."""

from tests.hostile import (
    captions,
    checkpoints,
    commands,
    configurations,
    images,
    outputs,
    runs,
    stores,
    texts,
)

_TABLES = (images, captions, texts, checkpoints, stores, runs, outputs, configurations, commands)
# Each is tried in a fresh copy of the place.
INPUTS = [hostile for table in _TABLES for hostile in table.INPUTS]
# More of the same kinds, which only `python -m tests.hostile` tries.
MORE = [*captions.MORE, *checkpoints.MORE, *runs.MORE]
# These need no files: a whole group is tried in one empty folder.
GROUPS = configurations.VALUES_OF_KEYS
