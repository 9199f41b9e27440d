"""Command lines: they do what they say, or are refused in one line before anything is written."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from tests.hostile.attempt import Hostile, Outcome, either, nothing, refused, script

# Short for what many lines have in common, and for what cannot be typed.
_SHORT = {
    "TINY": "--config tiny.yaml",
    "NEW": "--config tiny.yaml run.name=new",
    "ONE": "data/images/00.png --checkpoint model.pth",
    "MODEL": "--checkpoint model.pth",
    "LONG": "n" * 300,
    "HUGE": "9" * 5000,
    "ESCAPE": "\x1b[31m",
    "NUL": "\0",
}
_REFUSED = """
build_vocab --unknown
build_vocab TINY --top x
build_vocab TINY --output ''
build_vocab TINY --output data
build_vocab TINY --output tiny.yaml/x
build_vocab TINY --output LONG
build_vocab TINY data.min_freq=0
train --unknown
train --resume tiny.yaml
train --resume data
train --resume NUL
train --resume LONG
train TINY --resume absent
train TINY run.folder=tiny.yaml
train TINY run.name=..
train TINY run.name=.
train NEW train.lr=1e30 train.epochs=0
train NEW train.beam=0
train NEW train.beam=1000000
train NEW train.monitor=ESCAPE
train NEW run.device=cuda:99
train NEW run.device=''
train NEW run.device=meta
train NEW run.device=ESCAPE
train NEW data.images=absent
train NEW data.images=tiny.yaml
train NEW encoder.layer=''
train NEW encoder.layer=features.99
train NEW encoder.image_size=1000000
train NEW encoder.grid=100000
train NEW decoder.kind=''
train NEW decoder.hidden_dim=1000000000
train NEW decoder.embed_dim=1000000000
train NEW decoder.attention_dim=1000000000
train NEW features.folder=tiny.yaml
train NEW search.beam=1000000
train NEW search.max_length=1000000000
evaluate --unknown
evaluate --split everything
evaluate MODEL --beam 0
evaluate MODEL --beam 1000000
evaluate MODEL --beam x
evaluate MODEL --strict
evaluate MODEL --output tiny.yaml
evaluate MODEL --output ''
evaluate MODEL search.temperature=.inf
evaluate MODEL search.max_length=1000000000
evaluate MODEL decoder.hidden_dim=9
evaluate MODEL decoder.hidden_dim=1000000000
evaluate MODEL encoder.image_size=1000000
evaluate MODEL data.images=absent
inference_visualize
inference_visualize --unknown
inference_visualize ''
inference_visualize MODEL '*.absent'
inference_visualize MODEL data/images ''
inference_visualize MODEL /dev/zero
inference_visualize ONE --limit 0
inference_visualize ONE --limit -1
inference_visualize ONE --beam 0
inference_visualize ONE --beam 1000000
inference_visualize ONE --temperature nan
inference_visualize ONE --temperature inf
inference_visualize ONE --temperature -1
inference_visualize ONE --temperature 1 --top-p 0
inference_visualize ONE --temperature 1 --top-p nan
inference_visualize ONE --temperature 1 --top-k -1
inference_visualize ONE --seed -1
inference_visualize ONE --seed HUGE
inference_visualize ONE --output tiny.yaml
inference_visualize ONE --output ''
inference_visualize ONE --output LONG
inference_visualize ONE search.beam=true
inference_visualize ONE search.max_length=1000000000
inference_visualize ONE encoder.name=resnet18
visualize_loss --unknown
visualize_loss tiny.yaml
visualize_loss data
visualize_loss runs/tiny --output ''
visualize_loss runs/tiny --output x.docx
visualize_loss runs/tiny --output data
visualize_loss runs/tiny --output tiny.yaml/x.png
visualize_loss runs/tiny --output LONG.png
show_model --unknown
show_model TINY --vocab-size -1
show_model TINY --vocab-size x
show_model TINY --vocab-size 1000000000000
show_model TINY --output ''
show_model TINY --output data
show_model TINY --output x.docx
show_model TINY --output tiny.yaml/x.png
show_model TINY decoder.hidden_dim=1000000000
show_model TINY encoder.image_size=1000000
"""
# Options and keys that take a file; each is given what is no file in the place of PATH.
_WITH_A_PATH = """
build_vocab --config PATH
build_vocab TINY data.captions=PATH
train --config PATH
train NEW data.captions=PATH
train NEW decoder.embeddings=PATH
train NEW encoder.weights=PATH
evaluate --checkpoint PATH
evaluate TINY --predictions PATH
inference_visualize data/images --checkpoint PATH
inference_visualize MODEL PATH
inference_visualize ONE --captions PATH
visualize_loss PATH
show_model --config PATH
"""
# The same, where an empty path or one that is not needed is allowed.
_WITH_A_PATH_OR_NONE = """
build_vocab TINY data.lists=PATH
train NEW train.init_from=PATH
"""
_PATHS: dict[str, Callable[[Path], object]] = {
    "": nothing,
    "absent": nothing,
    "nul\0": nothing,
    "folder": os.mkdir,
    "fifo": os.mkfifo,
    "loop": lambda path: path.symlink_to("loop"),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "n" * 300: nothing,
}


def _words(line: str, path: str = "") -> list[str]:
    """The arguments of a line of a table."""
    for short, whole in _SHORT.items():
        line = line.replace(short, whole)
    return [word.replace("PATH", path) for word in shlex.split(line)]


def _lines() -> list[Hostile]:
    return [
        Hostile(f"line: {line}", nothing, script(*_words(line)), refused())
        for line in _REFUSED.strip().splitlines()
    ]


def _paths() -> list[Hostile]:
    """What is no file, as every argument that names one. None of these means the current folder."""
    found = []
    for lines, promise in ((_WITH_A_PATH, refused()), (_WITH_A_PATH_OR_NONE, either)):
        for line in lines.strip().splitlines():
            for path, make in _PATHS.items():

                def prepare(_: Path, path=path, make=make) -> None:
                    if path:
                        make(Path(path))

                name = f"line: {line.replace('PATH', repr(path[:9]))}"
                found.append(Hostile(name, prepare, script(*_words(line, path)), promise))
    return found


def _advises_no_option_of_others(outcome: Outcome) -> None:
    refused("absent")(outcome)
    assert "--checkpoint" not in outcome.text, outcome.text


_ADVICE = Hostile(
    "line: the advice for train --resume absent",
    nothing,
    script("train", "--resume", "absent"),
    _advises_no_option_of_others,
)
INPUTS = [*_lines(), *_paths(), _ADVICE]
