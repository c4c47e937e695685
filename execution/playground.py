"""What `magma_interactive.ipynb` shows: controls, an answer as it comes, its phases as a plot."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from execution.options import Options
from execution.report import PhaseRow, human, read_trace
from utils.errors import UserError
from utils.images import decode_image, load_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from execution.magma import Magma

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "world"
PROMPTS = (
    "A picture of",
    "Q: What is in the picture? A:",
    "Q: Is there something that can fly? A:",
    "Q: Is there something that has wheels? A:",
)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_PREVIEW = 384
"""Pixels of the preview's longer side."""


def read_phases(folder: Path) -> dict[str, PhaseRow]:
    """The phases of all traces of a model by name, in the order they first ran."""
    phases: dict[str, PhaseRow] = {}
    for path in sorted(folder.glob("batch_*.json")):  # beside them lie plans of memory
        for row in read_trace(path) or ():
            old = phases.get(row.name, PhaseRow(row.name, 0, 0, 0.0))
            phases[row.name] = _plus(row, old, 1)
    return phases


def phases_since(before: dict[str, PhaseRow], after: dict[str, PhaseRow]) -> list[PhaseRow]:
    """What ran between two readings, of which the second was later."""
    nothing = PhaseRow("", 0, 0, 0.0)
    rows = [_plus(row, before.get(name, nothing), -1) for name, row in after.items()]
    return [row for row in rows if row.runs]


def _plus(row: PhaseRow, other: PhaseRow, sign: int) -> PhaseRow:
    return PhaseRow(
        row.name,
        row.runs + sign * other.runs,
        row.loaded_bytes + sign * other.loaded_bytes,
        row.ms + sign * other.ms,
    )


def phase_figure(rows: list[PhaseRow]) -> Figure:
    """A bar for each phase, one behind the other: its width is the time of all its runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.7 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    starts = [sum(row.ms for row in rows[:number]) for number in range(len(rows))]
    axes.barh(range(len(rows)), [row.ms for row in rows], left=starts, color="tab:blue")
    labels = [f"{row.name} × {row.runs} ({human(row.loaded_bytes)})" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("ms; phase × runs (weights loaded)")
    return figure


class Playground:
    """Controls and what they lead to; its parts are ipywidgets.

    Attributes:
        box: all of it, to be displayed.
        picture, upload: which picture; the one chosen last counts.
        prompt, temperature, top_k, top_p, max_new_tokens, seed: of the answer.
        text: the answer.
        message: the line of an error.
        phases: the plot of the answer's phases.
        compared: greedy and sampled answers.
    """

    def __init__(self, magma: Magma, trace: Path, pictures: Path = EXAMPLES) -> None:
        """Makes the controls.

        Args:
            magma: the model.
            trace: the folder that it was opened with.
            pictures: a folder of pictures to choose from.

        Raises:
            UserError: ipywidgets is not installed, or the folder has no pictures.
        """
        try:
            import ipywidgets as widgets
        except ImportError as error:
            raise UserError("the notebook needs: pip install ipywidgets matplotlib") from error
        names = sorted(p.name for p in pictures.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not names:
            raise UserError(f"{pictures}: holds no pictures; name another folder")
        self._magma, self._trace, self._folder = magma, trace, pictures
        self._make_controls(widgets, names)
        self._make_outputs(widgets)
        buttons = [widgets.Button(description=name) for name in ("Answer", "Compare")]
        for button, call in zip(buttons, (self.answer, self.compare), strict=True):
            button.on_click(lambda _, call=call: call())
        options = [self.temperature, self.top_k, self.top_p, self.max_new_tokens, self.seed]
        chosen = widgets.VBox([self.picture, self.upload, self.preview])
        asked = widgets.VBox([self.prompt, *options, widgets.HBox(buttons), self.message])
        outputs = [self.text, self.phases, self.compared]
        self.box = widgets.VBox([widgets.HBox([chosen, asked]), *outputs])
        self._uploaded = False
        for choice in (self.picture, self.upload):
            choice.observe(lambda change: self._chosen(change["owner"]), names="value")
        self._chosen(self.picture)

    def _make_controls(self, widgets: Any, names: list[str]) -> None:
        self.picture = widgets.Dropdown(options=names, description="picture")
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, description="upload")
        self.prompt = widgets.Combobox(
            value=PROMPTS[0], options=PROMPTS, ensure_option=False, description="prompt"
        )
        self.temperature = widgets.FloatSlider(0.7, min=0, max=2, description="temperature")
        self.top_k = widgets.IntSlider(0, min=0, max=100, description="top k")
        self.top_p = widgets.FloatSlider(0.9, min=0.05, max=1, step=0.05, description="top p")
        self.max_new_tokens = widgets.IntSlider(20, min=1, max=100, description="new tokens")
        self.seed = widgets.IntText(0, description="seed")

    def _make_outputs(self, widgets: Any) -> None:
        wide = widgets.Layout(width="95%")
        self.preview = widgets.Image(format="png")
        self.text = widgets.Textarea(description="answer", disabled=True, layout=wide)
        self.message = widgets.HTML()
        self.phases = widgets.Image(format="png")
        self.compared = widgets.HTML()

    def answer(self) -> str:
        """Answers the prompt about the picture, piece by piece.

        Returns:
            The text so far, after an error too; ``message`` then has its line.
        """
        self.text.value = ""
        self._guarded(self._answer)
        return str(self.text.value)

    def compare(self, samples: int = 3) -> list[str]:
        """The most probable answer, and some drawn as the controls say.

        Returns:
            Their texts, the most probable token by token first; none after an error.
        """
        texts: list[str] = []
        self._guarded(lambda: texts.extend(self._compare(samples)))
        return texts

    def _answer(self) -> None:
        before = read_phases(self._trace)
        stream = self._magma.stream(self._image(), self.prompt.value, **self._options())
        for piece in stream:
            self.text.value += piece
        rows = phases_since(before, read_phases(self._trace))
        if rows:
            self.phases.value = _png(lambda file: phase_figure(rows).savefig(file, format="png"))

    def _compare(self, samples: int) -> list[str]:
        image, prompt, drawn_as = self._image(), self.prompt.value, self._options()
        greedy_as, drawn_as["num_return_sequences"] = self._options(), samples
        greedy_as["temperature"] = 0.0
        greedy = self._magma.generate(image, prompt, **greedy_as)
        drawn = self._magma.generate(image, prompt, **drawn_as)
        names = ["greedy", *(f"sample {number}" for number in range(1, samples + 1))]
        rows = "".join(
            f"<tr><td>{name}</td><td>{escape(answer.text)}</td>"
            f"<td>{sum(answer.log_probs):.2f}</td></tr>"
            for name, answer in zip(names, [*greedy, *drawn], strict=True)
        )
        head = "<tr><th></th><th>answer</th><th>log-probability</th></tr>"
        self.compared.value = f"<table>{head}{rows}</table>"
        return [answer.text for answer in [*greedy, *drawn]]

    def _options(self) -> Options:
        return Options(
            temperature=self.temperature.value,
            top_k=self.top_k.value,
            top_p=self.top_p.value,
            max_new_tokens=self.max_new_tokens.value,
            seed=self.seed.value,
        )

    def _chosen(self, choice: Any) -> None:
        self._uploaded = choice is self.upload and bool(self.upload.value)
        self._guarded(self._show_picture)

    def _image(self) -> Image.Image:
        if self._uploaded:
            file = self.upload.value[0]
            return decode_image(file["name"], BytesIO(file["content"]))
        return load_image(self._folder / self.picture.value)

    def _show_picture(self) -> None:
        self.preview.value = b""
        image = self._image().convert("RGB")
        image.thumbnail((_PREVIEW, _PREVIEW))
        self.preview.value = _png(lambda file: image.save(file, "PNG"))

    def _guarded(self, work: Callable[[], object]) -> None:
        """Does something and shows an expected failure of it as one line."""
        self.message.value = ""
        try:
            work()
        except UserError as error:
            self.message.value = f"error: {escape(str(error))}"
        except KeyboardInterrupt:
            self.message.value = "stopped"


def _png(save: Callable[[BytesIO], object]) -> bytes:
    file = BytesIO()
    save(file)
    return file.getvalue()
