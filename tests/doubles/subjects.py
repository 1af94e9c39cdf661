"""A folder of files as the worker looks at it: the instances of one study with the verdict on each."""

from pathlib import Path

from pydicom import dcmread

from worker.compose import Material, Subject
from worker.engine import Engine
from worker.loops import analyse_files


def looked_at(folder: Path, engine: Engine, *, with_attention: bool = False) -> tuple[Subject, ...]:
    """Return the files of a folder, by name, with what the engine says of them."""
    files = sorted(folder.iterdir())
    headers = [dcmread(file, stop_before_pixels=True) for file in files]
    return tuple(
        Subject(
            sop_instance_uid=header.SOPInstanceUID,
            sop_class_uid=header.SOPClassUID,
            series_instance_uid=header.SeriesInstanceUID,
            path=file,
            verdict=verdict,
        )
        for file, header, verdict in zip(
            files, headers, analyse_files(files, engine, with_attention=with_attention), strict=True
        )
    )


def material_of(subjects: tuple[Subject, ...]) -> Material:
    """Return what the first report of these instances is made of."""
    study_uid = dcmread(subjects[0].path, stop_before_pixels=True).StudyInstanceUID
    return Material(study_instance_uid=study_uid, revision=1, predecessor=None, subjects=subjects)
