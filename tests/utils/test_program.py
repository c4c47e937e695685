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
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "error: a/b: permission denied\n"),
        (
            OSError(28, "No space left on device"),
            "error: cannot read or write: no space left on device\n",
        ),
        (OSError("wordless"), "error: cannot read or write: wordless\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_program(lambda: _raise(error)) == 2
    assert capfd.readouterr().err == line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirected", "status", "errors"),
    [
        (">/dev/full", 2, "error: cannot read or write: no space left on device\n"),
        (">&-", 0, ""),
    ],
)
def test_output_that_nobody_takes_gives_no_traceback(
    redirected: str, status: int, errors: str
) -> None:
    code = "import sys; from utils.program import run_program; "
    code += "sys.exit(run_program(lambda: print('text')))"
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirected}', sys.executable, code]
    ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (status, errors)


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
