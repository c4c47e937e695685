"""Programs end with a status, and with one line where the user can mend what went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.program import ProgramParser, run_program

ROOT = Path(__file__).resolve().parents[2]


def _raise(error: BaseException) -> None:
    raise error


def test_success_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: _raise(UserError("a\nb: is missing"))) == 2
    assert capsys.readouterr() == ("", "error: a b: is missing\n")


def test_interruption_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: _raise(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: _raise(ZeroDivisionError()))


def test_a_reader_that_leaves_gives_no_traceback() -> None:
    code = "import sys; from utils.program import ProgramParser, run_program\n"
    code += "sys.exit(run_program(lambda: print('x' * 1_000_000)))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limt", "3"], "unknown option --limt; did you mean '--limit'? (--help lists all)"),
        (["--lim", "3"], "unknown option --lim; did you mean '--limit'? (--help lists all)"),
        (["--limit=x"], "argument --limit: invalid int value: 'x' (--help explains)"),
        (["more"], "unexpected argument 'more' (--help explains)"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str) -> None:
    parser = ProgramParser(description="what it does")
    parser.add_argument("--limit", type=int)
    assert parser.parse_args(["--limit", "3"]).limit == 3
    with pytest.raises(UserError) as caught:
        parser.parse_args(words)
    assert str(caught.value) == message
