"""What all scripts have in common, and the smallest of them."""

import pytest

from tests.script_helpers import run


def test_the_curves_are_drawn_of_the_newest_run(trained):
    (trained / "runs/tiny/loss_curve.png").unlink()
    text = run(trained, "visualize_loss")
    assert "tiny" in text
    assert (trained / "runs/tiny/loss_curve.png").exists()


@pytest.mark.parametrize("script", ["train", "evaluate", "build_vocab"])
def test_a_misspelt_key_is_one_line_with_the_right_spelling(trained, script):
    assert "did you mean 'data.captions'" in run(trained, script, "data.caption=x", status=2)


@pytest.mark.parametrize(
    "script", ["train", "evaluate", "build_vocab", "inference_visualize", "visualize_loss", "show_model"]
)
def test_every_script_has_help(tmp_path, script):
    assert "usage:" in run(tmp_path, script, "--help")
