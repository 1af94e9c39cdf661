"""EchoNet-Dynamic on disk: FileList.csv and Videos/*.avi, apical four-chamber loops, one a patient."""

from pathlib import Path

from model.clip.spec import ClipSpec
from model.clip.video import open_video
from model.errors import UnreadableLoop
from model.tasks import Task, View
from trainer.data.labels import check_measurements, parse_number
from trainer.data.manifest import Split
from trainer.data.origin import Listing, Origin, Skip
from trainer.data.reel import SourceReel
from trainer.data.tables import need_table, read_rows

_COLUMNS = ("FileName", "EF", "ESV", "EDV", "Split")
_TARGETS = {"EF": Task.LVEF, "EDV": Task.LVEDV, "ESV": Task.LVESV}
_SPLITS: dict[str, Split] = {"TRAIN": "train", "VAL": "val", "TEST": "test"}
_VIDEOS = "Videos"


def survey(root: Path) -> Listing:
    """Return the loops of FileList.csv; file names may stand with or without .avi."""
    table = need_table(root, "FileList")
    origins: dict[str, Origin] = {}
    skipped: list[Skip] = []
    for row in read_rows(table, _COLUMNS):
        name = row["FileName"].removesuffix(".avi")
        path = f"{_VIDEOS}/{name}.avi"
        reason = _mistake(row) or ("listed twice" if name in origins else None)
        if reason is None and not (root / path).is_file():
            reason = "file is missing"
        if reason is not None:
            skipped.append(Skip(path=path, reason=reason, is_bad=True))
            continue
        origins[name] = Origin(
            key=name,
            subject=name,
            study=name,
            source=path,
            files=(path,),
            split=_SPLITS[row["Split"].upper()],
            kind="loop",
            view=View.A4C,
            targets={task: float(row[column]) for column, task in _TARGETS.items()},
            frame_time_ms=1000.0 / rate if (rate := parse_number(row.get("FPS", "")) or 0.0) > 0.0 else None,
        )
    return Listing(origins=tuple(origins[name] for name in sorted(origins)), skipped=tuple(skipped))


def open_reel(root: Path, origin: Origin, clip: ClipSpec) -> SourceReel:
    """Return the video."""
    path = root / origin.files[0]
    if not path.is_file():
        raise UnreadableLoop("the file is missing")
    return SourceReel(source=open_video(path), clip=clip)


def _mistake(row: dict[str, str]) -> str | None:
    """Return what is wrong with a row."""
    if row["Split"].upper() not in _SPLITS:
        return f"unknown split: {row['Split']}"
    numbers = {task: parse_number(row[column]) for column, task in _TARGETS.items()}
    for column, task in _TARGETS.items():
        if numbers[task] is None:
            return f"label is no number: {column} {row[column]}"
    return check_measurements({task: number for task, number in numbers.items() if number is not None})
