"""The pictures of one report: drawn before the report that refers to them.

A loop that cannot be read again costs its own picture alone; the last attempt at a report is made without any.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from dicom_node.report.document import NOTICE, in_order
from dicom_node.report.findings import UNITS, Findings, LoopFinding, PictureKind
from dicom_node.report.origin import Origin
from dicom_node.report.pictures import Picture, saliency, summary, summary_pdf
from model.clip.loop import load_clips
from model.errors import ClipError, UnreadableLoop
from worker.engine import Engine
from worker.illustration import Illustration, open_illustration
from worker.loops import AnalysedLoop, attention_of
from worker.summary import MAX_LOOPS, Shown, draw

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
        paths: of every loop whose file is there, by SOP Instance UID.
        analysed: the verdict on every loop, by SOP Instance UID.
        engine: who looked.
        kinds: which pictures are wanted.
        step: called before every loop and before the page: each is a piece of work with a deadline of its own.
    """
    if not kinds:
        return ()
    numbered = enumerate(in_order(findings.loops), start=1)
    counted = findings.carriers & paths.keys()
    carriers = [(number, one) for number, one in numbered if one.sop_instance_uid in counted]
    shown: dict[str, Shown] = {}
    pictures: list[Picture] = []
    for number, one in carriers:
        step()
        uid = one.sop_instance_uid
        try:
            illustration = _illustration(paths[uid], analysed[uid], engine)
            if PictureKind.SALIENCY in kinds:
                cine = illustration.cine(_lines(one, number, findings.algorithm.statement))
                pictures.append(saliency(origin, one, number, cine))
            if len(shown) < MAX_LOOPS:
                shown[uid] = Shown(still_HWC=illustration.still(), trace=illustration.trace)
        except ClipError as error:
            # A loop that was read before: a later frame is damaged, or the disk lost it. The numbers stand.
            log.warning("loop_not_illustrated", instance=uid, reason=str(error))
    step()
    if {PictureKind.SUMMARY, PictureKind.SUMMARY_PDF} & {*kinds}:
        page = draw(findings, origin.header, shown)
        sources = [one for _, one in carriers if one.sop_instance_uid in shown]
        pictures += [summary(origin, page)] if PictureKind.SUMMARY in kinds else []
        pictures += [summary_pdf(origin, page, sources)] if PictureKind.SUMMARY_PDF in kinds else []
    return tuple(pictures)


def _illustration(path: Path, loop: AnalysedLoop, engine: Engine) -> Illustration:
    """Return where the networks looked in a loop whose number counts.

    Raises:
        ClipError: the loop cannot be read any more, or it cannot be found out.
    """
    # A loop that was looked at while nobody wanted pictures has no attention yet.
    attention = loop.attention or attention_of(load_clips(path, engine.spec), loop.outputs, engine)
    if attention is None:
        raise UnreadableLoop("where the networks looked could not be found out")
    return open_illustration(path, loop, attention, engine.spec)


def _lines(one: LoopFinding, number: int, statement: str) -> list[str]:
    """Return what stands under the picture of a loop."""
    said = [f"{each.task.upper()} {each.value:.0f} {UNITS[each.task]}" for each in one.numbers]
    lines = (f"Loop {number}: {', '.join([one.view or 'no view', *said])}", _LEGEND, NOTICE, statement)
    return [line for line in lines if line]
