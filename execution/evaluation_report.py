"""A page of evaluated samples: pictures, answers, references and scores, all in one file.

Everything shown comes from datasets and models: it is text to a browser, never markup.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from execution.evaluation import Result
from utils.errors import UserError
from utils.images import load_image

_SIDE = 160
"""Pixels of a picture's longer side."""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ border-top: 1px solid #ddd; padding: .5em; text-align: left; vertical-align: top }}
table.short {{ width: auto }}
td {{ overflow-wrap: anywhere }}
.prediction {{ font-weight: bold }}
.prompt, .name {{ color: #666 }}
ul {{ margin: 0; padding-left: 1.2em }}
</style>
</head>
<body>
<h1>{title}</h1>
<table class="short">{scores}</table>
<details><summary>settings</summary><table class="short">{settings}</table></details>
<p>{shown}</p>
<table>
<tr><th>picture</th><th>answer</th><th>references</th><th>scores</th></tr>
{rows}
</table>
</body>
</html>
"""


@dataclass(frozen=True)
class Shown:
    """A sample on the page.

    Attributes:
        result: its answer.
        picture: its picture's file.
        scores: by metric.
    """

    result: Result
    picture: Path
    scores: dict[str, float]


def report_page(
    title: str,
    scores: dict[str, float],
    settings: dict[str, Any],
    shown: Sequence[Shown],
    total: int,
) -> str:
    """The page as HTML, with small copies of the pictures in it.

    Args:
        title: its headline.
        scores: of all samples, by metric.
        settings: what the answers depend on.
        shown: the samples to show.
        total: how many there are.
    """
    return _PAGE.format(
        title=escape(title),
        scores=_pairs({name: f"{score:.2f}" for name, score in scores.items()}),
        settings=_pairs(settings),
        shown=escape(f"{len(shown)} of {total} samples"),
        rows="\n".join(map(_row, shown)),
    )


def _pairs(values: dict[str, Any]) -> str:
    lines = (
        f"<tr><th>{escape(name)}</th><td>{escape(str(v))}</td></tr>" for name, v in values.items()
    )
    return "".join(lines)


def _row(shown: Shown) -> str:
    result = shown.result
    examples = f"examples: {', '.join(result.examples)}" if result.examples else ""
    scores = "<br>".join(f"{escape(name)} {score:.1f}" for name, score in shown.scores.items())
    return (
        f'<tr><td>{_picture(shown.picture)}<div class="name">{escape(result.name)}</div></td>'
        f'<td><span class="prompt">{escape(result.prompt)}</span> '
        f'<span class="prediction">{escape(result.prediction)}</span>'
        f'<div class="name">{escape(examples)}</div></td>'
        f"<td><ul>{''.join(f'<li>{escape(text)}</li>' for text in result.references)}</ul></td>"
        f"<td>{scores}</td></tr>"
    )


def _picture(path: Path) -> str:
    try:
        image = load_image(path, friendly=True)
    except UserError:
        return "(cannot be read)"
    image.thumbnail((_SIDE, _SIDE))
    file = BytesIO()
    image.save(file, "JPEG", quality=75)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'
