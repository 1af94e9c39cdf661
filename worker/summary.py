"""The report on one page, for viewers that show no Structured Report: as a picture and as a PDF, from one drawing.

It says what the report says and no more. Nothing on it depends on the clock, so that two runs draw the same page.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pydicom import Dataset

from dicom_node.report import concepts
from dicom_node.report.document import NOTICE, cart_words, in_order, whole
from dicom_node.report.findings import SCALES, SHORT_NAMES, UNITS, Evaluation, Findings, LoopFinding, Measurement
from dicom_node.report.pictures import Page
from dicom_node.report.reference import NORMAL, SOURCE, Applicable, applicable
from model.clip.source import Frames
from worker.illustration import encode
from worker.lettering import printable, wrap

MAX_LOOPS = 6
"""Loops whose picture is on the page; the first ones of the report that carried a number."""

_INCHES = (11.69, 8.27)  # A4, on its side: as screens are
_DPI = 150
_QUALITY = 92
_LEFT, _RIGHT, _WORDS = 0.03, 0.97, 0.68  # of the page's width; where the words begin
_INK, _QUIET, _ALARM, _BAND, _OURS, _CARTS = "#111111", "#555555", "#a01010", "#cfe3cf", "#1f4e9c", "#b36b00"
_SEXES = {"M": "men", "F": "women"}
_MORE = "... the rest is in the Structured Report."


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A loop that carried a number, as the page shows it."""

    still_HWC: Frames
    """One frame, with the attention over it."""
    trace: tuple[float, ...]
    """The share of each slice of time in the attention."""


def draw(findings: Findings, header: Dataset, shown: Mapping[str, Shown]) -> Page:
    """Return the page.

    Args:
        findings: what the report says.
        header: patient and study attributes, repaired (`report.header`).
        shown: loops that carried a number, by SOP Instance UID, at most MAX_LOOPS.
    """
    # The font is the one that lines are measured with; letters stay letters in the PDF.
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "pdf.fonttype": 42}):
        figure = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        _heading(figure, findings, header)
        _measurements(figure, findings, applicable(header))
        _words(figure, findings)
        _loops(figure, findings, shown)
        _footing(figure, findings)
        return _encoded(figure)


def _encoded(figure: Figure) -> Page:
    picture, document = io.BytesIO(), io.BytesIO()
    figure.savefig(picture, format="rgba", dpi=_DPI)
    figure.savefig(document, format="pdf", metadata={"CreationDate": None, "Creator": "Echo AI node"})
    columns, rows = (int(side) for side in figure.canvas.get_width_height())
    pixels_HW4 = np.frombuffer(picture.getvalue(), dtype=np.uint8).reshape(rows, columns, 4)
    return Page(jpeg=encode(pixels_HW4[..., :3], _QUALITY), rows=rows, columns=columns, pdf=document.getvalue())


def _heading(figure: Figure, findings: Findings, header: Dataset) -> None:
    """Write whose study it is and what the numbers are worth; the statement whole, if need be in small letters.

    The upper left corner stays free: viewers write the study's date and the series over it.
    """
    _text(figure, _LEFT, 0.935, "Echocardiography: automatic measurements (AI)", size=15, bold=True)
    sex = {"M": "male", "F": "female", "O": "other"}.get(header.PatientSex, "sex unknown")
    when = (_day(header.StudyDate, "study of "), _titled(header.AccessionNumber, "accession "))
    who = (_name(header), f"ID {header.PatientID}", _day(header.PatientBirthDate, "born "), sex)
    _block(figure, 0.912, [(", ".join(word for word in (*who, *when) if word), _INK, False)], sizes=(9, 7), bottom=0.88)
    warning = " ".join(text for text in (NOTICE, _sentence(findings.algorithm.statement)) if text)
    _block(figure, 0.868, [(warning, _ALARM, True)], sizes=(9, 7, 5), bottom=0.83)


def _measurements(figure: Figure, findings: Findings, whose: Applicable) -> None:
    """Draw each number on its axis: the normal range, what each loop said, ours with its spread, the cart's."""
    measured = {one.task: one for one in findings.measurements}
    for number, task in enumerate(Measurement):
        bottom = 0.745 - 0.08 * number
        _text(figure, _LEFT, bottom + 0.028, SHORT_NAMES[task], size=12, bold=True)
        one = measured.get(task)
        if one is None:
            _text(figure, 0.11, bottom + 0.028, "not measured", size=12, color=_QUIET)
        else:
            spread = "" if one.sd is None else f" ± {whole(one.sd)}"
            _text(figure, 0.11, bottom + 0.028, f"{one.value:.0f}{spread} {UNITS[task]}", size=12, bold=True)
            told = f"of {_count(len(one.loops), 'loop')}, {_count(one.members, 'network')}"
            _text(figure, 0.11, bottom + 0.004, told, size=7, color=_QUIET)
        axes = figure.add_axes((0.25, bottom, 0.32, 0.05))
        _range_axis(axes, task, whose.sexes)
        said = [number.value for loop in findings.loops for number in loop.numbers if number.task is task]
        axes.plot(said, [0.5] * len(said), "o", color=_OURS, alpha=0.45, markersize=4)
        if one is not None:
            axes.errorbar(one.value, 0.5, xerr=one.sd or 0.0, fmt="D", color=_OURS, markersize=6, capsize=4)
        carts = [value.value for value in findings.cart if value.measurement is task]
        axes.plot(carts, [0.5] * len(carts), "s", color=_CARTS, markersize=5, markerfacecolor="none")
        axes.set_xlim(
            0.0, max([SCALES[task], *(1.1 * value for value in (*said, *carts, *([one.value] if one else [])))])
        )
    legend = "diamond: this report, with one standard deviation over the networks   dots: its loops   square: the cart"
    _text(figure, 0.25, 0.558, legend, size=6.5, color=_QUIET)
    _block(figure, 0.538, [(_reference(whose), _QUIET, False)], sizes=(6.5,), bottom=0.5, right=0.64)


def _range_axis(axes: Axes, task: Measurement, sexes: Sequence[str]) -> None:
    axes.set_yticks([])
    axes.set_ylim(0.0, 1.0)
    axes.tick_params(axis="x", labelsize=6, length=2, pad=1)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    height = 1.0 / max(len(sexes), 1)
    for place, sex in enumerate(sexes):
        normal = NORMAL[sex][task]
        corner = (normal.low, place * height)
        axes.add_patch(Rectangle(corner, normal.high - normal.low, height, color=_BAND, linewidth=0))
        label = f"{normal.low:.0f}-{normal.high:.0f} {UNITS[task]} {_SEXES[sex]}"
        middle = (place + 0.5) * height
        axes.text(1.01, middle, label, fontsize=6.5, va="center", transform=axes.transAxes, color=_QUIET)


def _reference(whose: Applicable) -> str:
    if not whose.sexes:
        return "No reference range: the patient is a child."
    adults = " and ".join(_SEXES[sex] for sex in whose.sexes)
    doubt = "" if whose.is_age_known else " The patient's age is not known: a child has other ranges."
    return f"Green: normal for adult {adults}. {SOURCE}.{doubt}"


def _words(figure: Figure, findings: Findings) -> None:
    """Write what is said in words, from the top down, on the right; what must be seen first."""
    lines: list[tuple[str, str, bool]] = []
    for one in findings.evaluations:
        answer = concepts.PRESENCE.get(one.value) or concepts.GRADES[one.value]
        name = concepts.EVALUATED[one.task].meaning
        lines.append(
            (f"{name}: {answer.meaning} ({_probability(one.task, one.value, one.probabilities)})", _INK, False)
        )
    lines += [(note, _ALARM, False) for note in findings.notes]
    for abstained in findings.abstentions:
        task = abstained.task
        name = SHORT_NAMES[task] if isinstance(task, Measurement) else concepts.EVALUATED[task].meaning
        lines.append((f"{name}, not answered: {abstained.reason}", _QUIET, False))
    if findings.cart:
        lines.append((cart_words(findings.cart), _CARTS, False))
    if findings.refused:
        not_analysed = f"{_count(len(findings.refused), 'instance')} not analysed: see the Structured Report."
        lines.append((not_analysed, _QUIET, False))
    _block(figure, 0.8, lines, sizes=(7.5, 6), bottom=0.5, left=_WORDS)


def _probability(task: Evaluation, value: str, probabilities: Mapping[str, float]) -> str:
    """Return the probability of the answer that is given; never none, and never certainty."""
    reduced = probabilities.get("reduced", 0.0)
    binary = {"present": reduced, "absent": 1.0 - reduced}
    chance = binary[value] if task is Evaluation.LVEF_REDUCED else probabilities[value]
    if chance > 0.99:
        return "probability over 99 %"
    return f"probability {chance:.0%}" if chance >= 0.01 else "probability under 1 %"


def _loops(figure: Figure, findings: Findings, shown: Mapping[str, Shown]) -> None:
    """Draw the loops that carried a number: one frame, what each said, attention over time."""
    drawn = [
        (number, one) for number, one in enumerate(in_order(findings.loops), start=1) if one.sop_instance_uid in shown
    ]
    width = (_RIGHT - _LEFT) / MAX_LOOPS
    for place, (number, one) in enumerate(drawn):
        left = _LEFT + place * width
        _loop(figure, left, width - 0.01, f"Loop {number}: {one.view or 'no view'}", one, shown[one.sop_instance_uid])
    if drawn:
        more = len(findings.carriers - shown.keys())
        said = (
            "Colour: attention rollout, from the average of the clip (none) to eight times it (yellow); below, its "
            "share in each part of the clip. It shows where the networks looked, not why."
            + (f" {_count(more, 'more loop')} carried a number." if more else "")
        )
        _block(figure, 0.105, [(said, _QUIET, False)], sizes=(6.5,), bottom=0.075)


def _loop(figure: Figure, left: float, width: float, title: str, one: LoopFinding, shown: Shown) -> None:
    _text(figure, left, 0.475, title, size=8, bold=True)
    said = ", ".join(f"{SHORT_NAMES[each.task]} {each.value:.0f} {UNITS[each.task]}" for each in one.numbers)
    _block(figure, 0.458, [(said, _INK, False)], sizes=(6,), bottom=0.43, left=left, right=left + width)
    axes = figure.add_axes((left, 0.235, width, 0.2))
    axes.imshow(shown.still_HWC)
    axes.set_axis_off()
    axes.set_anchor("N")
    trace = figure.add_axes((left, 0.145, width - 0.005, 0.06))
    trace.step(np.arange(len(shown.trace) + 1), [*shown.trace, shown.trace[-1]], where="post", color=_OURS, linewidth=1)
    trace.set_ylim(0.0, max(*shown.trace, 1e-6) * 1.1)
    trace.set_xlim(0, len(shown.trace))
    trace.set_xticks([])
    trace.tick_params(axis="y", labelsize=5, length=2, pad=1)
    trace.set_xlabel("time in the clip", fontsize=5.5, labelpad=2)


def _footing(figure: Figure, findings: Findings) -> None:
    one = findings.algorithm
    lines = [
        (f"{one.name} {one.version}, ensemble sha256 {one.ensemble_digest}", _QUIET, False),
        ("The Structured Report beside this page holds every number with its source.", _QUIET, False),
    ]
    _block(figure, 0.06, lines, sizes=(6.5,), bottom=0.02)


def _block(
    figure: Figure,
    top: float,
    paragraphs: Sequence[tuple[str, str, bool]],
    *,
    sizes: Sequence[float],
    bottom: float,
    left: float = _LEFT,
    right: float = _RIGHT,
) -> None:
    """Write paragraphs (text, colour, bold) in the first of the sizes in which all fit between two heights of the page.

    What does not fit in the last one ends with where the rest is.
    """
    lines: list[tuple[str, str, bool, float]] = []
    for size in sizes:
        leading = 1.35 * size / 72 / _INCHES[1]
        lines, y = [], top
        for text, colour, is_bold in paragraphs:
            for line in wrap(text, 0.98 * (right - left) * _INCHES[0] * 72, size, bold=is_bold):
                lines.append((line, colour, is_bold, y))
                y -= leading
            y -= 0.3 * leading
        if not lines or lines[-1][3] >= bottom:
            break
    else:
        lines = [one for one in lines if one[3] >= bottom]
        lines[-1:] = [(_MORE, _QUIET, False, lines[-1][3])] if lines else []
    for line, colour, is_bold, y in lines:
        _text(figure, left, y, line, size=size, color=colour, bold=is_bold)


def _text(figure: Figure, x: float, y: float, text: str, *, size: float, color: str = _INK, bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    # parse_math: a dollar sign in a name begins no formula
    figure.text(x, y, printable(text), fontsize=size, color=color, weight=weight, parse_math=False)


def _name(header: Dataset) -> str:
    """Return the patient's name in letters that the page can print; the header holds it whole."""
    groups = str(header.PatientName).split("=")
    shown = (" ".join(group.replace("^", " ").split()) for group in groups)
    return next((one for one in shown if one and printable(one) == one), "name: see the header")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _day(value: str, before: str) -> str:
    return f"{before}{value[:4]}-{value[4:6]}-{value[6:]}" if value else ""


def _titled(value: str, before: str) -> str:
    return f"{before}{value}" if value else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
