"""The pictures of one report: drawn before the report that refers to them.

A picture that cannot be drawn costs itself alone.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from dicom_node.report.document import NOTICE, in_order
from dicom_node.report.findings import UNITS, Findings, LoopFinding, PictureKind
from dicom_node.report.origin import Origin
from dicom_node.report.pictures import Picture, saliency, summary, summary_pdf
from model.clip.loop import load_clips
from model.errors import ClipError
from worker.engine import Engine
from worker.illustration import Illustration, illustrate
from worker.loops import AnalysedLoop, attention_of
from worker.summary import draw

log = structlog.get_logger(__name__)

_LEGEND = "Attention rollout: where the networks looked, not why. Yellow: eight times the average."


def draw_pictures(
    findings: Findings,
    origin: Origin,
    paths: Mapping[str, Path],
    analysed: Mapping[str, AnalysedLoop],
    engine: Engine,
    kinds: Collection[PictureKind],
    step: Callable[[], None],
) -> tuple[Picture, ...]:
    """Return the wanted pictures, in the order in which they go out.

    Args:
        findings: what the report says.
        origin: of the report.
        paths: of every loop, by SOP Instance UID.
        analysed: the verdict on every loop, by SOP Instance UID.
        engine: who looked.
        kinds: which pictures are wanted.
        step: called before every loop and before the page: each is a piece of work with a deadline of its own.
    """
    if not kinds:
        return ()
    numbered = enumerate(in_order(findings.loops), start=1)
    carriers = [(number, one) for number, one in numbered if one.sop_instance_uid in findings.carriers]
    illustrations: dict[str, Illustration] = {}
    pictures: list[Picture] = []
    for number, one in carriers:
        uid = one.sop_instance_uid
        try:
            step()
            found = _illustrate(one, number, paths[uid], analysed[uid], engine, findings.algorithm.statement)
        except ClipError as error:
            # A loop that was read before: a later frame is damaged, or the disk lost it. The numbers stand.
            log.warning("loop_not_illustrated", instance=uid, reason=str(error))
            continue
        illustrations[uid] = found
        if PictureKind.SALIENCY in kinds:
            pictures.append(saliency(origin, one, number, found.cine))
    step()
    if {PictureKind.SUMMARY, PictureKind.SUMMARY_PDF} & {*kinds}:
        page = draw(findings, origin.header, illustrations)
        shown = [one for _, one in carriers if one.sop_instance_uid in illustrations]
        pictures += [summary(origin, page)] if PictureKind.SUMMARY in kinds else []
        pictures += [summary_pdf(origin, page, shown)] if PictureKind.SUMMARY_PDF in kinds else []
    return tuple(pictures)


def _illustrate(
    one: LoopFinding, number: int, path: Path, loop: AnalysedLoop, engine: Engine, statement: str
) -> Illustration:
    """Return the picture of a loop.

    Raises:
        ClipError: the loop cannot be read any more.
    """
    # A loop that was looked at while nobody wanted pictures has no attention yet.
    attention = loop.attention or attention_of(load_clips(path, engine.spec), loop.outputs, engine)
    assert attention is not None, "a loop whose number counts speaks for a task"
    said = [f"{each.task.upper()} {each.value:.0f} {UNITS[each.task]}" for each in one.numbers]
    lines = (f"Loop {number}: {', '.join([one.view or 'no view', *said])}", _LEGEND, NOTICE, statement)
    return illustrate(path, loop, attention, engine.spec, [line for line in lines if line])
