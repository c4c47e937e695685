"""Expected failures are told in one line."""

from __future__ import annotations

from utils.errors import UserError


def test_message_has_one_line_whatever_it_quotes() -> None:
    assert str(UserError("a\nb.pt: no\r\nsuch\u2028file")) == "a b.pt: no such file"


def test_plain_message_is_kept() -> None:
    assert str(UserError("a  b: c")) == "a  b: c"
