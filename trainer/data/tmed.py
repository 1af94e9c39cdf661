"""TMED-2 on disk: stills of 112 x 112 pixels, a table of labels for each fold.

A study's labelled stills become one stack with the diagnosis; every still of a known view becomes a clip of one frame.
The released code of Echo-Vision-FM stacks them in the order of the table; here the order is that of the node: by view,
then by number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from model.clip.select import Reason
from model.clip.source import Frames
from model.clip.spec import ClipSpec
from model.errors import NotALoop, UnreadableLoop
from model.tasks import Grade, Task, View
from trainer.data.manifest import Split
from trainer.data.origin import Listing, Origin, Skip
from trainer.data.tables import need_table, read_rows

DEVELOPMENT_SET, FOLD = "DEV479", 1
"""What the paper used."""

_COLUMNS = (
    "query_key",
    "SourceFolder",
    "view_label",
    "diagnosis_label",
    "view_classifier_split",
    "diagnosis_classifier_split",
)
_VIEWS = {"A4C": View.A4C, "A2C": View.A2C, "PLAX": View.PLAX, "PSAX": View.PSAX, "A4CorA2CorOther": View.OTHER}
_ORDER = list(_VIEWS)
_GRADES = {
    "no_AS": Grade.NONE,
    "mild_AS": Grade.MILD,
    "mildtomod_AS": Grade.MILD_TO_MODERATE,
    "moderate_AS": Grade.MODERATE,
    "severe_AS": Grade.SEVERE,
}
_NOT_PROVIDED = "Not_Provided"
_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StillReel:
    """Stills as files."""

    root: Path
    files: tuple[str, ...]
    frame_time_ms: float | None = None
    heart_rate: float | None = None

    @property
    def num_frames(self) -> int:
        """Return the number of stills."""
        return len(self.files)

    def read(self, indices: Sequence[int]) -> list[Frames]:
        """Return these stills, RGB uint8 (H, W, 3) each."""
        return [_read(self.root / self.files[index]) for index in indices]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Still:
    name: str
    study: str
    number: int
    path: str
    view: str
    diagnosis: str
    view_split: str
    diagnosis_split: str

    @property
    def subject(self) -> str:
        """Return the patient: the studies of one are 12s1, 12s2."""
        return self.study.partition("s")[0]

    @property
    def place(self) -> tuple[int, int]:
        """Return where it stands in a stack."""
        return _ORDER.index(self.view) if self.view in _ORDER else len(_ORDER), self.number


def survey(root: Path) -> Listing:
    """Return a stack for each study with a diagnosis, and the stills of known views."""
    root_of_images = root / "approved_users_only" if (root / "approved_users_only").is_dir() else root
    below = root_of_images.relative_to(root).as_posix()
    stills, skipped = _read_table(root, root_of_images, "" if below == "." else f"{below}/")
    studies: dict[str, list[_Still]] = {}
    for still in stills:
        studies.setdefault(still.study, []).append(still)
    origins: list[Origin] = []
    sides: dict[str, Split] = {}
    for study, members in sorted(studies.items()):
        stack, reason = _stack(study, members)
        if reason is not None:
            skipped.append(Skip(path=study, reason=reason, is_bad=True))
        if stack is not None and stack.split is not None:
            origins.append(stack)
            sides[stack.subject] = stack.split
    for still in stills:
        side = _SPLITS.get(still.view_split.lower())
        if still.view not in _VIEWS or side is None:
            continue
        # The diagnosis decides on which side a patient is: one table may hold two opinions.
        if sides.setdefault(still.subject, side) != side:
            skipped.append(Skip(path=still.path, reason="the patient's diagnosis is on another side", is_bad=False))
            continue
        origins.append(_single(still, side))
    return Listing(origins=tuple(sorted(origins, key=lambda one: one.key)), skipped=tuple(skipped))


def open_reel(root: Path, origin: Origin, clip: ClipSpec) -> StillReel:
    """Return the stills.

    Raises:
        NotALoop: the recipe cuts the sector out, which shows by motion alone.
    """
    if clip.crop != "none":
        raise NotALoop(Reason.NO_SECTOR, "a still shows no motion: prepare these without a crop")
    return StillReel(root=root, files=origin.files)


def _read_table(root: Path, images: Path, below: str) -> tuple[list[_Still], list[Skip]]:
    table = need_table(images / DEVELOPMENT_SET, f"TMED2_fold{FOLD}_labeledpart")
    stills: dict[str, _Still] = {}
    skipped: list[Skip] = []
    for row in read_rows(table, _COLUMNS):
        key, path = row["query_key"], f"{below}{row['SourceFolder']}/{row['query_key']}"
        reason = _mistake(row) or ("listed twice" if key in stills else None)
        if reason is None and not (root / path).is_file():
            reason = "file is missing"
        if reason is not None:
            skipped.append(Skip(path=path, reason=reason, is_bad=True))
            continue
        study, _, number = key.removesuffix(".png").partition("_")
        stills[key] = _Still(
            name=key.removesuffix(".png"),
            study=study,
            number=int(number),
            path=path,
            view=row["view_label"],
            diagnosis=row["diagnosis_label"],
            view_split=row["view_classifier_split"],
            diagnosis_split=row["diagnosis_classifier_split"],
        )
    return list(stills.values()), skipped


def _mistake(row: Mapping[str, str]) -> str | None:
    study, _, number = row["query_key"].removesuffix(".png").partition("_")
    if not number.isdigit() or "s" not in study:
        return f"name is not of the form 12s1_0.png: {row['query_key']}"
    if row["view_label"] not in (*_VIEWS, _NOT_PROVIDED):
        return f"label out of range: view_label {row['view_label']}"
    if row["diagnosis_label"] not in (*_GRADES, _NOT_PROVIDED):
        return f"label out of range: diagnosis_label {row['diagnosis_label']}"
    return None


def _stack(study: str, members: Sequence[_Still]) -> tuple[Origin | None, str | None]:
    """Return the stack of a study, and what is wrong with it."""
    known = [still for still in members if still.diagnosis in _GRADES]
    if not known:
        return None, None
    diagnoses = {still.diagnosis for still in known}
    sides = {still.diagnosis_split.lower() for still in known}
    if len(diagnoses) > 1 or len(sides) > 1:
        return None, f"stills of one study disagree: {', '.join(sorted(diagnoses | sides))}"
    split = _SPLITS.get(sides.pop())
    if split is None:
        return None, None  # of no side: the study is not used for diagnoses
    ordered = sorted(known, key=lambda still: still.place)
    return Origin(
        key=f"stack/{study}",
        subject=known[0].subject,
        study=study,
        source=study,
        files=tuple(still.path for still in ordered),
        split=split,
        kind="stack",
        view=None,
        targets={Task.AORTIC_STENOSIS: _GRADES[known[0].diagnosis].value},
    ), None


def _single(still: _Still, split: Split) -> Origin:
    view = _VIEWS[still.view]
    return Origin(
        key=f"still/{still.name}",
        subject=still.subject,
        study=still.study,
        source=still.path,
        files=(still.path,),
        split=split,
        kind="still",
        view=view,
        targets={Task.VIEW: view.value},
    )


def _read(path: Path) -> Frames:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UnreadableLoop(f"{path.name} is no image") from error
