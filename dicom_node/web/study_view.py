"""A study as its page shows it: results first, then loop by loop, then what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dicom_node.errors import ObjectsUnavailable
from dicom_node.identity import UID, result_uid
from dicom_node.ledger.contents import Contents, Held, Reported
from dicom_node.ledger.schema import InstanceState
from dicom_node.report.findings import SCALES, PictureKind
from dicom_node.store import PICTURES, PREVIEWS, InstanceStore, preview_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """A number on its axis; places are percent of its length."""

    place: float
    spread: tuple[float, float] | None
    """From where to where one standard deviation goes."""
    loops: Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownResult:
    """A result of the study."""

    result: Mapping[str, Any]
    loops: Sequence[tuple[str, int | None]]
    """SOP Instance UID and number in the report of each loop that it stands on."""
    scale: Scale | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownLoop:
    """A loop that was analysed."""

    number: int | None
    """In the report; None: no report counts it yet."""
    held: Held
    finding: Mapping[str, Any]
    """View and numbers; empty: no report says them yet."""
    has_preview: bool
    attention: str | None
    """SOP Instance UID of the picture with the attention over it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyView:
    """All that the page shows beside what `dicom-node study --json` says."""

    results: Sequence[ShownResult]
    loops: Sequence[ShownLoop]
    others: Sequence[Held]
    """Instances without a result: waiting, refused, given up."""


def study_view(study_uid: UID, held: Contents, store: InstanceStore) -> StudyView:
    """Return the page's view of a study."""
    newest = held.reports[-1] if held.reports else None
    findings: Mapping[str, Any] = newest.findings if newest else {}
    numbered = {one["sop_instance_uid"]: (place, one) for place, one in enumerate(_loop_findings(findings), start=1)}
    numbers = {uid: place for uid, (place, _) in numbered.items()}
    kept = _shared(study_uid, store)
    loops = [
        ShownLoop(
            number=numbers.get(one.sop_instance_uid),
            held=one,
            finding=numbered[one.sop_instance_uid][1] if one.sop_instance_uid in numbered else {},
            has_preview=bool(one.path) and (preview_path(one.path) in kept or store.exists(preview_path(one.path))),
            attention=_attention(study_uid, one, newest, store, kept),
        )
        for one in held.instances
        if one.state is InstanceState.ANALYSED
    ]
    return StudyView(
        results=[
            ShownResult(
                result=one,
                loops=sorted(((uid, numbers.get(uid)) for uid in one["loops"]), key=lambda loop: loop[1] or 0),
                scale=_scale(one),
            )
            for one in findings.get("results", ())
        ],
        loops=sorted(loops, key=lambda one: one.number or len(loops) + 1),
        others=[one for one in held.instances if one.state is not InstanceState.ANALYSED],
    )


def attention_uid(study_uid: UID, report: Reported, sop_uid: str) -> UID:
    """Return the SOP Instance UID of the attention over a loop, if the report has that picture."""
    name = f"{PictureKind.SALIENCY}/{sop_uid}"
    return result_uid(study_uid, report.revision, report.ensemble_digest, name)


def _loop_findings(findings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = findings.get("loop_findings", ())  # reports of an older version have none
    return found


def _shared(study_uid: UID, store: InstanceStore) -> set[str]:
    """Return the previews and pictures that the object store has; none while it is away: the page comes without."""
    folders = (f"{folder}/{study_uid}" for folder in (PREVIEWS, PICTURES))
    try:
        return {f"{folder}/{name}" for folder in folders for name in store.shared_names(folder)}
    except ObjectsUnavailable:
        return set()


def _attention(study_uid: UID, held: Held, newest: Reported | None, store: InstanceStore, kept: set[str]) -> str | None:
    """Return the SOP Instance UID of the picture with the attention over a loop; None: there is none, or no more."""
    if newest is None:
        return None
    wanted = attention_uid(study_uid, newest, held.sop_instance_uid)
    found = next((one for one in newest.pictures if one.sop_instance_uid == wanted), None)
    is_kept = found is not None and bool(found.path) and (found.path in kept or store.exists(found.path))
    return wanted if is_kept else None


def _scale(result: Mapping[str, Any]) -> Scale | None:
    end = SCALES.get(result["task"])
    if end is None or isinstance(result["value"], str | bool):
        return None

    def place(value: float) -> float:
        return round(min(max(value / end, 0.0), 1.0) * 100.0, 1)

    value, sd = result["value"], result["sd"]
    return Scale(
        place=place(value),
        spread=None if sd is None else (place(value - sd), place(value + sd)),
        loops=[place(one) for one in (result.get("per_loop") or {}).values()],
    )
