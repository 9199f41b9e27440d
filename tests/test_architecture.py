"""The figure of a model: diagrams of decoders as data, and the drawing of them."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.sample import describe
from models.diagram import EXAMPLE, Arrow, Box, Diagram, default_diagram
from models.model import build_model
from models.summary import Summary, summarise, total
from reports.architecture import SCENE, draw_architecture, short
from tests.helpers import tiny
from utils import UserError

VOCAB_SIZE = 50
DECODERS = {
    "attention": {},
    "dot_attention": {"attention": "dot", "layers": 2},
    "untied": {"tie_embeddings": False},
    "lstm": {"kind": "lstm", "layers": 2},
    "transformer": {"kind": "transformer", "heads": 2, "layers": 2},
    "refined transformer": {"kind": "transformer", "heads": 2, "refine": 1, "feedforward_dim": 16},
    "refined attention": {"heads": 2, "refine": 1, "feedforward_dim": 16},
    "one_hot lstm": {"kind": "lstm", "embeddings": "one_hot", "tie_embeddings": False},
}


def summary_and_diagram(folder, decoder: str) -> tuple[Summary, Diagram]:
    config = tiny(folder, decoder=DECODERS[decoder])
    model = build_model(config, VOCAB_SIZE)
    summary = summarise(model, 64)
    return summary, model.decoder.diagram(config.decoder, summary.grid[0])


def module_names(rows) -> list[str]:
    return [row.name.removeprefix("decoder.") for row in rows]


def decoder_defaults(summary: Summary) -> Diagram:
    return default_diagram("a decoder", module_names(summary.start), module_names(summary.step))


@pytest.mark.parametrize("decoder", DECODERS)
def test_boxes_count_all_parameters_of_the_decoder_once(tmp_path, decoder):
    summary, diagram = summary_and_diagram(tmp_path, decoder)
    modules = [name for box in diagram.boxes if box.count for name in box.modules]
    assert len(modules) == len(set(modules))
    expected = total([*summary.start, *summary.step], "parameters")
    assert total(summary.decoder_rows(modules), "parameters") == expected
    default = {name for box in decoder_defaults(summary).boxes for name in box.modules}
    assert total(summary.decoder_rows(default), "parameters") == expected


def assert_on_the_sheet(diagram: Diagram) -> None:
    """Boxes are in their panels and do not overlap; arrows are horizontal and vertical lines."""
    for i, box in enumerate(diagram.boxes):
        assert box.x > 2
        assert box.x + box.width < (diagram.split - 2 if box.x < diagram.split else 198)
        assert box.y >= 4
        assert box.y + box.height <= 54
        for other in diagram.boxes[i + 1 :]:
            apart_x = box.x + box.width <= other.x or other.x + other.width <= box.x
            assert apart_x or box.y + box.height <= other.y or other.y + other.height <= box.y
    for arrow in diagram.arrows:
        steps = np.diff(np.array(arrow.points), axis=0)
        assert (np.count_nonzero(steps, axis=1) == 1).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_diagrams_of_the_decoders_have_room_and_straight_arrows(tmp_path, decoder):
    assert_on_the_sheet(summary_and_diagram(tmp_path, decoder)[1])


@pytest.mark.parametrize("once", [0, 1, 3, 4])
@pytest.mark.parametrize("per_word", [1, 4, 11, 14])
def test_a_decoder_that_does_not_describe_itself_gets_a_box_for_each_child(once, per_word):
    start = [f"start{i}" for i in range(once)]
    step = [f"step{i}.norm" for i in range(per_word)] + ["step0.linear"]
    diagram = default_diagram("a decoder", start, step)
    assert_on_the_sheet(diagram)
    *boxes, last = diagram.boxes
    assert [box.title for box in boxes] == [*start, *(f"step{i}" for i in range(per_word))]
    assert list(boxes[once].modules) == ["step0.norm", "step0.linear"]
    assert last.modules == ()
    assert all(box.width < 50 for box in boxes)
    left = [box for box in boxes if box.x + box.width < diagram.split]
    assert left == boxes[:once]
    # One arrow from the grid, one to each later box, and one from the next word back to the first module.
    assert len(diagram.arrows) == len(diagram.boxes) + 1


class Bag(nn.Module):
    """A decoder without attention and without a diagram: the next word depends on the previous one alone."""

    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(VOCAB_SIZE, 8), nn.Linear(8, VOCAB_SIZE)

    def start(self, grid: torch.Tensor) -> torch.Tensor:
        return grid.mean(dim=1)

    def step(self, tokens: torch.Tensor, state: torch.Tensor):
        return self.output(self.embedding(tokens)), state, None


def test_a_new_decoder_is_summarised_and_drawn(tmp_path):
    model = build_model(tiny(tmp_path), VOCAB_SIZE)
    assert summarise(model, 32).attends
    model = build_model(tiny(tmp_path), VOCAB_SIZE)
    model.decoder = Bag()
    summary = summarise(model, 32)
    assert not summary.attends
    assert (summary.start, summary.per_word) == ([], 8 * VOCAB_SIZE)
    assert module_names(summary.step) == ["embedding", "output"]
    assert "next word" in text_of(tmp_path, summary, decoder_defaults(summary))


def text_of(folder, summary: Summary, diagram: Diagram) -> str:
    """The text of a figure: an SVG draws glyphs, and has the text in comments."""
    draw_architecture(summary, diagram, "resnet18", folder / "text.svg")
    return (folder / "text.svg").read_text("utf-8")


def test_the_figure_says_what_the_diagram_says(tmp_path):
    summary, diagram = summary_and_diagram(tmp_path, "attention")
    text = text_of(tmp_path, summary, diagram)
    assert "resnet18 and an LSTM with soft attention" in text
    assert "256 cells of 64" in text
    parameters = total(summary.decoder_rows(["output"]), "parameters")
    assert f"{parameters} parameters, tied" in text
    for part in (*diagram.boxes, *diagram.notes):
        assert part.text in text
    for box in diagram.boxes:
        assert box.title in text
    wrong = Diagram("x", 51, [Box(7, 38, 37, 14, "cells", modules=("no such module",))], [])
    with pytest.raises(KeyError, match="no such module"):
        draw_architecture(summary, wrong, "resnet18", tmp_path / "model.svg")


def test_an_arrow_ends_just_before_its_last_point(tmp_path):
    summary = summary_and_diagram(tmp_path, "lstm")[0]
    draw_architecture(summary, Diagram("x", 51, [], [Arrow([(100, 30), (150, 30)])]), "x", tmp_path / "m.png")
    sheet = np.asarray(Image.open(tmp_path / "m.png").convert("L"))
    row = sheet[round((118 - 30) * sheet.shape[0] / 118)]
    dark = np.flatnonzero(row < 120) * 200 / sheet.shape[1]
    assert dark.min() == pytest.approx(100, abs=0.3)
    assert dark.max() == pytest.approx(149.4, abs=0.3)


def test_the_example_caption_is_that_of_the_image():
    assert describe(SCENE)[0].split()[: len(EXAMPLE)] == list(EXAMPLE)


@pytest.mark.parametrize("decoder", ["attention", "lstm"])
def test_the_figure_is_drawn_whole_and_the_same_each_time(tmp_path, decoder):
    summary, diagram = summary_and_diagram(tmp_path, decoder)
    draw_architecture(summary, diagram, "resnet18", tmp_path / "model.png")
    sheet = np.asarray(Image.open(tmp_path / "model.png").convert("L"))
    assert sheet.min() < 60
    assert all((edge > 250).all() for edge in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]))
    for name in ("a.svg", "b.svg"):
        draw_architecture(summary, diagram, "resnet18", tmp_path / name)
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    summary, diagram = summary_and_diagram(tmp_path, "attention")
    with pytest.raises(UserError, match=r"model\.gif: the name must end in"):
        draw_architecture(summary, diagram, "resnet18", tmp_path / "model.gif")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder"):
        draw_architecture(summary, diagram, "resnet18", tmp_path / "file" / "model.png")


def test_a_figure_replaces_an_earlier_one_but_no_file_of_the_user_s(tmp_path):
    summary, diagram = summary_and_diagram(tmp_path, "attention")
    for name in ("resnet18", "resnet50"):
        draw_architecture(summary, diagram, name, tmp_path / "model.svg")
    assert "resnet50" in (tmp_path / "model.svg").read_text()
    (tmp_path / "model.svg").write_text("edited by the user")
    with pytest.raises(UserError, match="changed since"):
        draw_architecture(summary, diagram, "resnet18", tmp_path / "model.svg")
    assert (tmp_path / "model.svg").read_text() == "edited by the user"


def test_numbers_are_short():
    assert [short(n) for n in (0, 999, 1024, 23_508_032, 4_087_136_256)] == [
        "0", "999", "1.02 k", "23.5 M", "4.09 G",
    ]  # fmt: skip
