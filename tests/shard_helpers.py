"""Shards for tests: written from the tiny dataset, or file by file."""

import io
import tarfile
from pathlib import Path

from config import DataConfig
from data.shard_writer import write_shards
from tests.helpers import tiny

PATTERN = "{train-{000..003},val-000,test-000}.tar"


def sharded(folder: Path, dataset: Path) -> dict:
    """Write the tiny dataset as shards, four of train; returns the section `data` of a configuration."""
    data = tiny(dataset).data
    write_shards(data, folder / "shards", 4)
    return {
        "captions": str(folder / "shards" / PATTERN),
        "index_folder": str(folder / "index"),
        "images": "none",
    }


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar file of these files in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def data_of(folder: Path, *names: str, **keys) -> DataConfig:
    """The configuration of shards in `folder`."""
    captions = [str(folder / name) for name in names]
    return DataConfig(captions=captions, index_folder=folder / "index", **keys)
