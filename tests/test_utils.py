"""How scripts end, and choices by name."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils import UserError, look_up, run_script

ROOT = Path(__file__).parents[1]


def ending(main) -> int:
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    return ended.value.code


def test_an_error_of_the_user_s_is_one_line_and_status_2(capsys):
    def main():
        raise UserError("no such\nthing;   fix it")

    assert ending(main) == 2
    assert capsys.readouterr().err == "error: no such thing; fix it\n"


def test_ctrl_c_is_status_130(capsys):
    def main():
        raise KeyboardInterrupt

    assert ending(main) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_what_main_returns_is_the_status():
    assert ending(lambda: None) is None
    assert ending(lambda: 1) == 1


def test_a_reader_that_leaves_causes_no_traceback():
    code = "from utils import run_script\nrun_script(lambda: print('x\\n' * 200_000))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "x\n"
    assert done.stderr == ""


def test_a_choice_is_found_by_its_name():
    assert look_up({"lstm": 1, "attention": 2}, "attention", "decoder.kind") == 2


@pytest.mark.parametrize(("name", "hint"), [("atention", "; did you mean 'attention'?"), ("gru", "")])
def test_an_unknown_name_is_answered_with_the_right_ones(name, hint):
    with pytest.raises(UserError) as error:
        look_up({"lstm": 1, "attention": 2}, name, "decoder.kind")
    assert str(error.value) == f"decoder.kind={name}: it must be one of lstm, attention{hint}"
