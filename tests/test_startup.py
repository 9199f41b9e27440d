"""How scripts start and end."""

from startup import Terminated, one_line, run_script

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.script_helpers import command, signal_handlers_restored
from utils import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def handlers():
    """`run_script` sets signal handlers; the tests after these get theirs back."""
    with signal_handlers_restored():
        yield


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
    code = "from startup import run_script\nrun_script(lambda: print('x\\n' * 200_000))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "x\n"
    assert done.stderr == ""


def test_sigterm_is_status_143(capsys):
    def main():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    assert ending(main) == 143
    assert capsys.readouterr().err == "stopped\n"


def test_sigterm_is_not_caught_as_an_error():
    assert not issubclass(Terminated, Exception)


def test_a_bug_is_one_line_status_70_and_a_file_with_the_traceback(capsys):
    def main():
        raise KeyError("the bug")

    assert ending(main) == 70
    [line] = capsys.readouterr().err.splitlines()
    file = Path(re.search(r"the file (\S+)$", line)[1])
    assert "KeyError: 'the bug'" in line
    assert 'raise KeyError("the bug")' in file.read_text()
    file.unlink()


def test_a_message_cannot_control_the_terminal():
    assert one_line("a\x1b[2Jb\r\nc\x07 \udce4") == "a\\x1b[2Jb c\\x07 \\udce4"


def test_a_message_ends_with_its_fix_however_long_a_name_in_it_is():
    line = one_line(f"no file at {'x' * 5000}; pass a file")
    assert line.startswith("no file at xxx")
    assert line.endswith("xxx; pass a file")
    assert len(line) < 1010


def test_a_path_that_the_system_refuses_is_one_line_and_status_2(tmp_path, capsys):
    def main():
        (tmp_path / ("x" * 300)).is_file()
        (tmp_path / ("x" * 300)).read_text()

    assert ending(main) == 2
    assert re.fullmatch(r"error: .*x: File name too long; check this path\n", capsys.readouterr().err)


def test_an_empty_argument_is_not_the_current_folder(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inference_visualize.py", ""])
    assert ending(lambda: 0) == 2
    assert "an argument is empty" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["inference_visualize.py", "a\0b.jpg"])
    assert ending(lambda: 0) == 2
    assert "NUL" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_imports_ends_without_a_traceback(number, status):
    process = subprocess.Popen(
        command("visualize_loss", "no run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "numpy" not in maps.read_text():  # pandas is being imported
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "", "stopped\n")
