"""The report on one page, for viewers that show no Structured Report: as a picture and as a PDF, from one drawing.

It says what the report says and no more. Nothing on it depends on the clock, so that two runs draw the same page.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from pydicom import Dataset

from dicom_node.report import concepts
from dicom_node.report.document import NOTICE, cart_words, in_order
from dicom_node.report.findings import UNITS, Evaluation, Findings, LoopFinding, Measurement
from dicom_node.report.pictures import Page
from dicom_node.report.reference import NORMAL, SOURCE, sexes
from worker.illustration import Illustration, encode

MAX_LOOPS = 6
"""Loops whose picture is on the page; the first ones of the report."""

_INCHES = (11.69, 8.27)  # A4, on its side: as screens are
_DPI = 150
_QUALITY = 92
_INK, _QUIET, _ALARM, _BAND, _OURS, _CARTS = "#111111", "#555555", "#a01010", "#cfe3cf", "#1f4e9c", "#b36b00"
_SEXES = {"M": "men", "F": "women"}
_NAMES = {Measurement.LVEF: "LVEF", Measurement.LVEDV: "LV EDV", Measurement.LVESV: "LV ESV"}
_AXIS = {Measurement.LVEF: (0.0, 90.0), Measurement.LVEDV: (0.0, 300.0), Measurement.LVESV: (0.0, 250.0)}


def draw(findings: Findings, header: Dataset, illustrations: Mapping[str, Illustration]) -> Page:
    """Return the page.

    Args:
        findings: what the report says.
        header: patient and study attributes, repaired (`report.header`).
        illustrations: of loops that carried a number, by SOP Instance UID.
    """
    figure = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _heading(figure, findings, header)
    _measurements(figure, findings, header)
    _words(figure, findings)
    _loops(figure, in_order(findings.loops), illustrations)
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
    # The upper left corner stays free: viewers write the study's date and the series over it.
    _text(figure, 0.03, 0.925, "Echocardiography: automatic measurements (AI)", size=16, weight="bold")
    sex = {"M": "male", "F": "female", "O": "other"}.get(header.PatientSex, "sex unknown")
    who = [_name(header), f"ID {header.PatientID}", _day(header.PatientBirthDate, "born "), sex]
    when = [
        _day(header.StudyDate, "study of "),
        f"accession {header.AccessionNumber}" if header.AccessionNumber else "",
    ]
    _text(figure, 0.03, 0.897, "   ".join(word for word in (*who, *when) if word), size=9)
    warning = " ".join(text for text in (NOTICE, _sentence(findings.algorithm.statement)) if text)
    for number, line in enumerate(textwrap.wrap(warning, 150)[:2]):
        _text(figure, 0.03, 0.872 - 0.02 * number, line, size=9, color=_ALARM, weight="bold")


def _measurements(figure: Figure, findings: Findings, header: Dataset) -> None:
    """Draw each number on its axis: the normal range, what each loop said, ours with its spread, the cart's."""
    ranges = sexes(header)
    measured = {one.task: one for one in findings.measurements}
    for number, task in enumerate(Measurement):
        bottom = 0.748 - 0.082 * number
        _text(figure, 0.03, bottom + 0.028, _NAMES[task], size=12, weight="bold")
        one = measured.get(task)
        if one is None:
            _text(figure, 0.11, bottom + 0.028, "not measured", size=12, color=_QUIET)
        else:
            spread = "" if one.sd is None else f" ± {one.sd:.0f}"
            loops = f"{len(one.loops)} loop{'' if len(one.loops) == 1 else 's'}"
            _text(figure, 0.11, bottom + 0.028, f"{one.value:.0f}{spread} {UNITS[task]}", size=12, weight="bold")
            networks = f"{one.members} network{'' if one.members == 1 else 's'}"
            _text(figure, 0.11, bottom + 0.004, f"of {loops}, {networks}", size=7, color=_QUIET)
        axes = figure.add_axes((0.25, bottom, 0.32, 0.05))
        _range_axis(axes, task, ranges)
        said = [number.value for loop in findings.loops for number in loop.numbers if number.task is task]
        axes.plot(said, [0.5] * len(said), "o", color=_OURS, alpha=0.45, markersize=4)
        if one is not None:
            axes.errorbar(one.value, 0.5, xerr=one.sd or 0.0, fmt="D", color=_OURS, markersize=6, capsize=4)
        carts = [value.value for value in findings.cart if value.measurement is task]
        axes.plot(carts, [0.5] * len(carts), "s", color=_CARTS, markersize=5, markerfacecolor="none")
        axes.set_xlim(_limits(task, [*said, *carts, *([one.value] if one else [])]))
    legend = "diamond: this report, with one standard deviation over the networks   dots: its loops   square: the cart"
    _text(figure, 0.25, 0.558, legend, size=6.5, color=_QUIET)
    _text(figure, 0.03, 0.538, _reference(ranges), size=6.5, color=_QUIET)


def _range_axis(axes: Axes, task: Measurement, ranges: Sequence[str]) -> None:
    axes.set_yticks([])
    axes.set_ylim(0.0, 1.0)
    axes.tick_params(axis="x", labelsize=6, length=2, pad=1)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    for place, sex in enumerate(ranges):
        normal = NORMAL[sex][task]
        height = 1.0 / len(ranges)
        axes.add_patch(
            Rectangle((normal.low, place * height), normal.high - normal.low, height, color=_BAND, linewidth=0)
        )
        label = f"{normal.low:.0f}-{normal.high:.0f} {UNITS[task]} {_SEXES[sex]}"
        axes.text(
            1.01, (place + 0.5) * height, label, fontsize=6.5, va="center", transform=axes.transAxes, color=_QUIET
        )


def _limits(task: Measurement, values: Sequence[float]) -> tuple[float, float]:
    low, high = _AXIS[task]
    return low, max([high, *(1.1 * value for value in values)])


def _reference(ranges: Sequence[str]) -> str:
    if not ranges:
        return "No reference range: the patient is a child."
    return f"Green: normal for {' and '.join(_SEXES[sex] for sex in ranges)}. {SOURCE}."


def _words(figure: Figure, findings: Findings) -> None:
    """Write what is said in words, from the top down, on the right."""
    lines: list[tuple[str, str]] = []
    for one in findings.evaluations:
        answer = concepts.PRESENCE.get(one.value) or concepts.GRADES[one.value]
        name = concepts.EVALUATED[one.task].meaning
        lines.append((f"{name}: {answer.meaning} ({_probability(one.task, one.value, one.probabilities)})", _INK))
    for abstained in findings.abstentions:
        name = (
            _NAMES[abstained.task]
            if isinstance(abstained.task, Measurement)
            else concepts.EVALUATED[abstained.task].meaning
        )
        lines.append((f"{name}, not answered: {abstained.reason}", _QUIET))
    lines += [(note, _ALARM) for note in findings.notes]
    if findings.cart:
        lines.append((cart_words(findings.cart), _CARTS))
    if findings.refused:
        number = len(findings.refused)
        lines.append(
            (f"{number} instance{'' if number == 1 else 's'} not analysed: see the Structured Report.", _QUIET)
        )
    top = 0.815
    for line, colour in lines:
        for part in textwrap.wrap(_printable(line), 62):
            if top < 0.56:
                _text(figure, 0.67, top, "... the rest is in the Structured Report.", size=7.5, color=_QUIET)
                return
            _text(figure, 0.67, top, part, size=7.5, color=colour)
            top -= 0.018
        top -= 0.006


def _probability(task: Evaluation, value: str, probabilities: Mapping[str, float]) -> str:
    """Return the probability of the answer that is given."""
    reduced = probabilities.get("reduced", 0.0)
    binary = {"present": reduced, "absent": 1.0 - reduced}
    chance = binary[value] if task is Evaluation.LVEF_REDUCED else probabilities[value]
    return f"probability {chance:.0%}"


def _loops(figure: Figure, loops: Sequence[LoopFinding], illustrations: Mapping[str, Illustration]) -> None:
    """Draw the loops that carried a number: the middle of the first beat, what each said, attention over time."""
    drawn = [(number, one) for number, one in enumerate(loops, start=1) if one.sop_instance_uid in illustrations]
    width = 0.94 / MAX_LOOPS
    for place, (number, one) in enumerate(drawn[:MAX_LOOPS]):
        illustration = illustrations[one.sop_instance_uid]
        left = 0.03 + place * width
        axes = figure.add_axes((left, 0.235, width - 0.01, 0.2))
        axes.imshow(illustration.still_HWC)
        axes.set_axis_off()
        axes.set_anchor("N")
        _text(figure, left, 0.475, f"Loop {number}: {one.view or 'no view'}", size=8, weight="bold")
        said = ", ".join(f"{_NAMES[each.task]} {each.value:.0f} {UNITS[each.task]}" for each in one.numbers)
        for row, line in enumerate(textwrap.wrap(said, 36)[:2]):
            _text(figure, left, 0.458 - 0.014 * row, line, size=6)
        trace = figure.add_axes((left, 0.15, width - 0.015, 0.06))
        trace.step(np.arange(len(illustration.trace) + 1), [*illustration.trace, illustration.trace[-1]], where="post")
        trace.set_ylim(0.0, max(illustration.trace) * 1.1)
        trace.set_xlim(0, len(illustration.trace))
        trace.set_xticks([])
        trace.tick_params(axis="y", labelsize=5, length=2, pad=1)
        trace.set_xlabel("time in the clip", fontsize=5.5, labelpad=2)
        if place == 0:
            trace.set_title("share of the attention", fontsize=5.5, loc="left", pad=2)
    if len(drawn) > MAX_LOOPS:
        _text(figure, 0.03, 0.5, f"{len(drawn) - MAX_LOOPS} more loops carried a number.", size=7, color=_QUIET)
    if drawn:
        text = "Colour: attention rollout, from the average of the clip (none) to eight times it (yellow)."
        _text(figure, 0.03, 0.095, f"{text} It shows where the networks looked, not why.", size=6.5, color=_QUIET)


def _footing(figure: Figure, findings: Findings) -> None:
    one = findings.algorithm
    text = f"{one.name} {one.version}, ensemble sha256 {one.ensemble_digest}"
    _text(figure, 0.03, 0.05, text, size=6.5, color=_QUIET)
    _text(figure, 0.03, 0.032, "The Structured Report beside this page holds every number with its source.", size=6.5,
          color=_QUIET)  # fmt: skip


def _text(
    figure: Figure, x: float, y: float, text: str, *, size: float, color: str = _INK, weight: str = "normal"
) -> None:
    # parse_math: a dollar sign in a name begins no formula
    figure.text(x, y, _printable(text), fontsize=size, color=color, weight=weight, parse_math=False)


def _name(header: Dataset) -> str:
    """Return the patient's name in letters that the page can print; the header holds it whole."""
    groups = str(header.PatientName).split("=")
    shown = (" ".join(group.replace("^", " ").split()) for group in groups)
    return next((one for one in shown if one and _printable(one) == one), "name: see the header")


def _printable(text: str) -> str:
    """Return the text with a question mark for every letter that the font has not."""
    letters = get_font(findfont(FontProperties()))
    return "".join(one if one == "\n" or letters.get_char_index(ord(one)) else "?" for one in text)


def _day(value: str, before: str) -> str:
    return f"{before}{value[:4]}-{value[4:6]}-{value[6:]}" if value else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
