"""The page shows texts of datasets and models as texts, whatever they hold."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from execution.evaluation import Result
from execution.evaluation_report import Shown, report_page

HOSTILE = [
    "<script>alert(1)</script>",
    "</li></ul></td><img src=x onerror=alert(1)>",
    "\"><a href='javascript:alert(1)'>x</a>",
    "&lt;b&gt; &amp; {title} {0} %s",
    "<!-- ]]> <style>*{display:none}</style>",
]


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGBA", (640, 320), (200, 30, 30, 255)).save(path)
    return path


def page_of(text: str, picture: Path) -> Page:
    result = Result(text, text, [text], text, [text, text])
    shown = [Shown(result, picture, {text: 12.34})]
    return Page(report_page(text, {text: 56.789}, {text: text}, shown, 7))


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts(text, picture):
    plain, hostile = page_of("plain", picture), page_of(text, picture)
    assert hostile.elements == plain.elements
    assert hostile.attributes == plain.attributes
    assert hostile.sources == plain.sources
    assert hostile.texts == [part.replace("plain", text) for part in plain.texts]
    assert sum(part.count(text) for part in hostile.texts) == 12


def test_scores_and_numbers_are_shown(picture):
    text = " ".join(page_of("x", picture).texts)
    assert "56.79" in text
    assert "12.3" in text
    assert "1 of 7 samples" in text


def test_pictures_are_small_copies(picture):
    (source,) = page_of("x", picture).sources
    kind, data = source.split(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.size == (160, 80)
    assert image.getpixel((80, 40)) == pytest.approx((200, 30, 30), abs=4)


def test_a_picture_that_is_gone_is_said_to_be(picture):
    picture.unlink()
    page = page_of("x", picture)
    assert page.sources == []
    assert "(cannot be read)" in page.texts
