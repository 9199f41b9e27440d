"""What the curves and the tables of training promise."""

import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import visualize_loss
from metrics import METRICS
from metrics.measures import LOSS, MEASURES, find_monitor
from reports.curves import draw_curves
from reports.loss_log import COLUMNS, best, rate_changes, read_log, run_names
from tests.script_helpers import ended
from utils import UserError


def write_rows(log: Path, rows: list[dict]) -> None:
    """A log with the columns that every log has and those of the rows; the other values are empty."""
    columns = list(dict.fromkeys([*COLUMNS, *(column for row in rows for column in row)]))
    lines = [",".join(str(row.get(column, "")) for column in columns) for row in rows]
    log.write_text("\n".join([",".join(columns), *lines]) + "\n")


def write_log(run: Path, epochs: int = 3, tail: str = "") -> Path:
    """A run folder with a log of five logging intervals an epoch; validation loss is best in epoch 2."""
    rows = []
    for epoch in range(1, epochs + 1):
        for step in range(10 * epoch - 8, 10 * epoch + 1, 2):
            loss = 5 / step + 2
            train = {"train_loss": loss, "train_perplexity": math.exp(loss), "train_top5": 0.4}
            rows.append(
                {"event": "step", "epoch": epoch, "step": step, "seconds": step, "lr": 0.001, **train}
            )
        val = 3 + abs(epoch - 2)
        measured = {"val_loss": val, "val_perplexity": math.exp(val), "val_top5": 0.6, "train_loss": 2.5}
        measured |= {"BLEU-1": 0.5, "BLEU-4": 0.1 * epoch, "ROUGE-L": 0.4, "CIDEr": 0.5}
        rows.append({"event": "epoch", "epoch": epoch, "step": 10 * epoch, "lr": 0.001, **measured})
    run.mkdir(parents=True)
    write_rows(run / "loss_log.txt", rows)
    with open(run / "loss_log.txt", "a") as log:
        log.write(tail)
    return run


@pytest.mark.parametrize("tail", ["", "step,4,3", "epoch,4,40,9,0.001,2.5,12.2,0.5,0.1", "st", "\0\0\0"])
def test_a_half_written_last_row_is_left_out(tmp_path, tail):
    run = write_log(tmp_path / "run", tail=tail)
    table = read_log(run / "loss_log.txt")
    assert len(table) == 18
    assert best(table, LOSS) == (3.0, 2)
    assert best(table, find_monitor("BLEU-4")) == (pytest.approx(0.3), 3)
    draw_curves([run], tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as sheet:
        assert sheet.width > 1000
        assert np.asarray(sheet.convert("L")).std() > 10


def test_what_is_learned_from_scores_has_panels_where_there_is_such_a_run(tmp_path):
    learned = {"event": "step", "epoch": 1, "train_reward": 0.5, "train_entropy": 1.2}
    write_rows(tmp_path / "loss_log.txt", [{**learned, "step": step} for step in (10, 20)])
    draw_curves([tmp_path], tmp_path / "learned.svg")
    drawn = (tmp_path / "learned.svg").read_text()
    assert "<!-- Reward -->" in drawn
    assert "<!-- Entropy -->" in drawn
    assert "<!-- Critic loss -->" not in drawn
    draw_curves([write_log(tmp_path / "run")], tmp_path / "curve.svg")
    assert "<!-- Reward -->" not in (tmp_path / "curve.svg").read_text()


def test_a_log_with_missing_and_unknown_columns_is_read(tmp_path):
    log = tmp_path / "loss_log.txt"
    log.write_text("event,epoch,step,train_loss,colour\nstep,1,10,3.5,red\nepoch,1,20,3.25,blue\n")
    table = read_log(log)
    assert table["train_loss"].tolist() == [3.5, 3.25]
    assert all(best(table, measure) is None for measure in MEASURES)
    draw_curves([log], tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_the_log_the_curves_and_the_table_have_what_the_list_of_metrics_says(tmp_path, monkeypatch, capsys):
    run = write_log(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["visualize_loss.py", str(run)])
    visualize_loss.main()
    heading = capsys.readouterr().out.splitlines()[1]
    sheet = (run / "loss_curve.svg").read_text()
    for metric in METRICS:
        assert (metric.name in COLUMNS) == metric.in_validation
        assert (metric.name in heading) == metric.in_curves
        assert (f"<!-- {metric.name} -->" in sheet) == metric.in_curves
    assert re.search(r"<!-- \d+(\.\d+)?% -->", sheet)  # the scale of a measure that is printed in percent


OLD_LOG = """event,epoch,step,lr,train_loss,val_loss,CIDEr
step,1,20,0.001,3.5,,
epoch,1,20,0.001,3.5,3.25,0.31
"""


def test_a_log_from_before_a_metric_was_added_is_read(tmp_path):
    log = tmp_path / "loss_log.txt"
    log.write_text(OLD_LOG)
    table = read_log(log)
    assert list(table.columns) == list(COLUMNS)
    assert best(table, LOSS) == (3.25, 1)
    assert best(table, find_monitor("CIDEr")) == (0.31, 1)
    assert best(table, find_monitor("ROUGE-L")) is None
    draw_curves([log], tmp_path / "curve.svg")
    assert "<!-- BLEU-4 -->" not in (tmp_path / "curve.svg").read_text()


def test_a_run_is_drawn_before_its_first_epoch_ends(tmp_path):
    log = tmp_path / "loss_log.txt"
    log.write_text("event,epoch,step,train_loss,lr\nstep,1,10,3.5,0.1\nstep,1,20,3.25,0.1\n")
    draw_curves([log], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_steps_that_a_resumed_run_repeated_count_once(tmp_path):
    log = tmp_path / "loss_log.txt"
    rows = ["event,epoch,step,train_loss", "step,1,10,3", "step,1,20,9", "resume,1,10,", "step,1,20,2"]
    log.write_text("\n".join(rows) + "\n")
    assert read_log(log)["step"].tolist() == [10, 10, 20]


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path):
    logs = [tmp_path / name / "loss_log.txt" for name in ("a/base", "b/base")]
    assert run_names(logs) == ["a/base", "b/base"]
    assert run_names(logs[:1]) == ["base"]


def test_two_runs_share_one_sheet_and_the_best_values_are_printed(tmp_path, monkeypatch, capsys):
    one, two = write_log(tmp_path / "old" / "base"), write_log(tmp_path / "new" / "$_base", epochs=5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["visualize_loss.py", str(one), str(two), "--output", "both.svg"])
    visualize_loss.main()
    table = capsys.readouterr().out.splitlines()
    both = ["3.000 in epoch 2", "20.09 in epoch 2", "60.0% in epoch 1"]
    assert re.split(r"  +", table[1]) == ["base", "3", *both, "0.300 in epoch 3", "0.500 in epoch 1"]
    assert re.split(r"  +", table[2]) == ["$_base", "5", *both, "0.500 in epoch 5", "0.500 in epoch 1"]
    assert "<svg" in (tmp_path / "both.svg").read_text()


def test_without_arguments_the_most_recent_run_is_drawn_and_named(tmp_path, monkeypatch, capsys):
    for age, name in enumerate(("newer", "older")):
        run = write_log(tmp_path / "runs" / name)
        os.utime(run / "loss_log.txt", (1e9 - age, 1e9 - age))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["visualize_loss.py"])
    visualize_loss.main()
    assert "runs/newer" in capsys.readouterr().out
    assert (tmp_path / "runs" / "newer" / "loss_curve.png").is_file()


@pytest.mark.parametrize(
    "problem", ["no such run", "no log", "empty log", "header only", "no numbers", "not a log"]
)
def test_a_log_that_cannot_be_drawn_is_a_user_error(tmp_path, problem):
    run = tmp_path / "run"
    log = run / "loss_log.txt"
    if problem != "no such run":
        run.mkdir()
    header = ",".join(COLUMNS) + "\n"
    contents = {
        "empty log": "",
        "header only": header,
        "no numbers": header + "step,1,2\n",
        "not a log": "a poem\n",
    }
    if problem in contents:
        log.write_text(contents[problem])
    with pytest.raises(UserError, match=re.escape(str(run))) as error:
        draw_curves([run], tmp_path / "curve.png")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "curve.png").exists()


def test_a_script_error_is_one_line_with_status_2(tmp_path):
    status, out, err = ended(tmp_path, "visualize_loss", "runs/nope")
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"error: .*runs/nope.*\n", err)


def test_a_rate_that_stood_still_and_changed_is_marked_and_a_cosine_is_not(tmp_path):
    def changes(rates: list[float]) -> list[int]:
        rows = [f"step,1,{step},3.5,{rate}" for step, rate in enumerate(rates, start=1)]
        # An epoch that ends with a logging interval repeats its rate.
        rows.insert(3, f"epoch,1,3,3.5,{rates[2]}")
        log = tmp_path / "loss_log.txt"
        log.write_text("\n".join(["event,epoch,step,train_loss,lr", *rows]) + "\n")
        table = read_log(log)
        return table.loc[rate_changes(table), "step"].tolist()

    assert changes([0.5, 1, 1, 1, 0.5, 0.5, 0.25]) == [4, 6]
    assert changes([0.5, 1, 0.9, 0.7, 0.4, 0.1]) == []


def test_one_run_is_drawn_as_png_and_svg_and_its_epochs_are_tabulated(tmp_path, monkeypatch, capsys):
    run = write_log(tmp_path / "base")
    monkeypatch.setattr(sys, "argv", ["visualize_loss.py", str(run)])
    visualize_loss.main()
    assert {path.name for path in run.iterdir()} == {"loss_log.txt", "loss_curve.png", "loss_curve.svg"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "base"
    assert lines[3].split()[:3] == ["2", "20", "0.001"]
    assert "3.000*" in lines[3]


def test_watching_draws_again_when_the_log_has_grown_and_waits_for_its_first_rows(
    tmp_path, monkeypatch, capsys
):
    log = tmp_path / "loss_log.txt"
    log.write_text(",".join(COLUMNS) + "\n")
    grown = (write_log(tmp_path / "other") / "loss_log.txt").read_text()
    steps = iter([lambda: None, lambda: log.write_text(grown), lambda: None])

    def sleep(_seconds):
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr("jobs.visualize_loss.time.sleep", sleep)
    monkeypatch.setattr(
        sys, "argv", ["visualize_loss.py", str(log), "--watch", "--output", str(tmp_path / "a.svg")]
    )
    with pytest.raises(KeyboardInterrupt):
        visualize_loss.main()
    out = capsys.readouterr().out
    assert out.count("waiting: ") == 1
    assert out.count("Wrote ") == 1
    assert (tmp_path / "a.svg").exists()


def test_runs_may_be_given_as_globs_which_not_every_shell_expands(tmp_path, monkeypatch, capsys):
    for name in ("one", "two", "[odd]"):
        write_log(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.visualize_loss.draw_curves", lambda *_: None)
    for arguments, names in (("runs/*", ["[odd]", "one", "two"]), ("runs/[odd]", ["[odd]"])):
        monkeypatch.setattr(sys, "argv", ["visualize_loss.py", arguments])
        visualize_loss.main()
        table = capsys.readouterr().out
        assert [name for name in ("[odd]", "one", "two") if name in table] == names


def test_a_glob_that_matches_no_run_is_an_error_for_people(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["visualize_loss.py", "nothing/*"])
    with pytest.raises(UserError, match=r"no such run: nothing/\*; pass a run folder"):
        visualize_loss.main()


def test_the_curves_of_a_run_are_replaced_but_no_file_of_the_user_s(tmp_path):
    run = write_log(tmp_path / "run")
    (run / "loss_curve.svg").write_text("from another version of this project")
    for output in (run / "loss_curve.svg", tmp_path / "own.svg", tmp_path / "own.svg"):
        draw_curves([run], output)
    (run / "notes.svg").write_text("the user's")
    (tmp_path / "loss_curve.svg").symlink_to(run / "notes.svg")
    for output in (run / "notes.svg", tmp_path / "loss_curve.svg"):
        with pytest.raises(UserError, match="did not write it"):
            draw_curves([run], output)
    assert (run / "notes.svg").read_text() == "the user's"
