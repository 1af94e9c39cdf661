"""CAMUS on disk, in both of its forms: NIfTI with official subgroups, and the MetaImage files of the challenge.

Each patient has half a beat in two apical views. The LVEF stands in Info_*.cfg; where the volumes do not, they are
measured on the experts' outlines (`simpson`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.clip.scale import Scale
from model.clip.source import Frames
from model.clip.spec import ClipSpec
from model.clip.transform import cut_out, locate
from model.errors import UnreadableLoop
from model.tasks import Task, View
from trainer.data.images import Images, read_images
from trainer.data.labels import check_measurements, parse_number
from trainer.data.manifest import Split
from trainer.data.origin import Listing, Origin, Skip
from trainer.data.simpson import Outline, biplane_volume_ml
from trainer.errors import DataError

_VIEWS = {"2CH": View.A2C, "4CH": View.A4C}
_INSTANTS = {"ED": Task.LVEDV, "ES": Task.LVESV}
_WRITTEN = {Task.LVEF: ("lvef", "ef"), Task.LVEDV: ("lvedv",), Task.LVESV: ("lvesv",)}
_GROUPS: dict[str, Split] = {"training": "train", "validation": "val", "testing": "test"}
_FOLD = 1  # of the ten that the challenge came with


@dataclass(frozen=True, kw_only=True, slots=True)
class _Patient:
    """A patient's folder."""

    key: str
    """Its path below the root, which the folders of both parts of the challenge need: they count alike."""
    split: Split | None
    suffix: str
    """Of images."""
    sequence: str
    """What the file of the half beat is called."""

    @property
    def name(self) -> str:
        """Return what its files begin with."""
        return Path(self.key).name


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageReel:
    """A sequence of grey images."""

    images: Images
    clip: ClipSpec
    """The recipe that the frames are cut out by."""
    frame_time_ms: float | None = None
    heart_rate: float | None = None

    @property
    def num_frames(self) -> int:
        """Return the number of its frames."""
        return len(self.images.frames_THW)

    def read(self, indices: Sequence[int]) -> list[Frames]:
        """Return these frames as the recipe cuts them out, RGB uint8 (H, W, 3) each."""
        frames_THWC = np.repeat(self.images.frames_THW[list(indices), ..., None], 3, axis=-1)
        scale = Scale(row_mm=self.images.row_mm, column_mm=self.images.column_mm)
        return list(cut_out(frames_THWC, locate(frames_THWC, self.clip, scale if scale.is_sane else None)))


def survey(root: Path) -> Listing:
    """Return both loops of each patient; the notes say how far the LVEF of the outlines is from that of the files."""
    origins: list[Origin] = []
    skipped: list[Skip] = []
    differences: list[float] = []
    for patient in _patients(root):
        try:
            infos = {short: _read_info(root / patient.key / f"Info_{short}.cfg") for short in _VIEWS}
            measured = _measure(root, patient)
        except UnreadableLoop as error:
            skipped.append(Skip(path=patient.key, reason=f"unreadable: {error}", is_bad=True))
            continue
        targets = _written(infos)
        if Task.LVEF in targets and len(measured) == len(_INSTANTS):
            differences.append(_lvef(measured) - float(targets[Task.LVEF]))
        for task, volume in measured.items():
            targets.setdefault(task, volume)
        mistake = check_measurements(targets)
        if mistake is not None:
            skipped.append(Skip(path=patient.key, reason=mistake, is_bad=True))
            continue
        origins += [_origin(patient, short, infos[short], targets) for short in _VIEWS]
    if not origins and not skipped:
        raise DataError(f"{root}: holds no patient of CAMUS: give the folder of database_nifti, or of training/")
    notes = {}
    if differences:
        notes = {
            "lvef_outlines_minus_file_mean": round(float(np.mean(differences)), 3),
            "lvef_outlines_minus_file_max": round(float(np.max(np.abs(differences))), 3),
            "lvef_outlines_and_file": float(len(differences)),
        }
    return Listing(origins=tuple(sorted(origins, key=lambda one: one.key)), skipped=tuple(skipped), notes=notes)


def open_reel(root: Path, origin: Origin, clip: ClipSpec) -> ImageReel:
    """Return the half beat."""
    return ImageReel(images=read_images(root / origin.files[0]), clip=clip)


def _origin(patient: _Patient, short: str, info: Mapping[str, str], targets: dict[Task, float | str]) -> Origin:
    file = f"{patient.key}/{patient.name}_{short}_{patient.sequence}{patient.suffix}"
    rate = parse_number(info.get("framerate", "")) or 0.0
    return Origin(
        key=f"{patient.key}/{short}",
        subject=patient.key,
        study=patient.key,
        source=file,
        files=(file,),
        split=patient.split,
        kind="loop",
        view=_VIEWS[short],
        targets=dict(targets),
        frame_time_ms=1000.0 / rate if rate > 0.0 else None,
        is_reversed=int(info["ed"]) > int(info["es"]),
    )


def _patients(root: Path) -> Iterator[_Patient]:
    """Yield the patients of whichever form is there."""
    nifti = root / "database_nifti" if (root / "database_nifti").is_dir() else root
    if any(nifti.glob("patient*/*.nii.gz")):
        groups = _groups(root / "database_split", root.parent / "database_split", pattern="subgroup_{}.txt")
        for folder in sorted(nifti.glob("patient*")):
            key = folder.relative_to(root).as_posix()
            yield _Patient(key=key, split=groups.get(folder.name), suffix=".nii.gz", sequence="half_sequence")
        return
    groups = _groups(root / "listSubGroups", pattern=f"subGroup{_FOLD}_{{}}.txt")
    for part in ("training", "testing"):
        for folder in sorted((root / part).glob("patient*")):
            key = folder.relative_to(root).as_posix()
            # The lists name patients of the part for training alone.
            split = groups.get(folder.name) if part == "training" else "test" if groups else None
            yield _Patient(key=key, split=split, suffix=".mhd", sequence="sequence")


def _groups(*folders: Path, pattern: str) -> dict[str, Split]:
    """Return the side of each patient that a list names.

    Raises:
        DataError: a patient stands in two lists.
    """
    found: dict[str, Split] = {}
    for folder in folders:
        for group, split in _GROUPS.items():
            path = folder / pattern.format(group)
            for name in path.read_text().split() if path.is_file() else ():
                if found.setdefault(name, split) != split:
                    raise DataError(f"{path}: {name} stands in another list too: get the lists again")
        if found:
            break
    return found


def _read_info(path: Path) -> dict[str, str]:
    """Return the values of an Info_*.cfg by their keys in lower case."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableLoop(f"{path.name} cannot be read") from error
    info = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    for key in ("ED", "ES"):
        if not info.get(key.lower(), "").isdigit():
            raise UnreadableLoop(f"{path.name} has no number for {key}")
    return info


def _written(infos: Mapping[str, Mapping[str, str]]) -> dict[Task, float | str]:
    """Return what the files say; both views' say the same of the patient, the four-chamber view's counts."""
    targets: dict[Task, float | str] = {}
    for task, keys in _WRITTEN.items():
        values = [parse_number(infos[short].get(key, "")) for short in ("4CH", "2CH") for key in keys]
        found = [value for value in values if value is not None]
        if found:
            targets[task] = found[0]
    return targets


def _measure(root: Path, patient: _Patient) -> dict[Task, float]:
    """Return the volumes on the outlines, as far as there are any."""
    volumes: dict[Task, float] = {}
    for instant, task in _INSTANTS.items():
        paths = [
            root / patient.key / f"{patient.name}_{short}_{instant}_gt{patient.suffix}" for short in ("2CH", "4CH")
        ]
        if not all(path.is_file() for path in paths):
            continue
        try:
            volumes[task] = round(biplane_volume_ml(*(_outline(path) for path in paths)), 3)
        except ValueError as error:
            raise UnreadableLoop(f"outlines at {instant}: {error}") from error
    return volumes


def _outline(path: Path) -> Outline:
    images = read_images(path)
    return Outline(labels_HW=images.frames_THW[0], row_mm=images.row_mm, column_mm=images.column_mm)


def _lvef(volumes: Mapping[Task, float]) -> float:
    return 100.0 * (volumes[Task.LVEDV] - volumes[Task.LVESV]) / volumes[Task.LVEDV]
