"""A verdict is kept in the ledger and comes back as it was."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PosixPath
from typing import cast

import numpy as np
import torch
from pydicom import Dataset
from pydicom.sequence import Sequence

from model.clip.loop import Clips
from model.clip.sector import Arc, Sector, Side
from model.clip.spec import ClipSpec
from model.ensemble import SHIPPED
from model.phantom.dicom import region
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.prediction import LoopOutputs
from model.tasks import Task, View
from tests.doubles.loops import US_MULTI_FRAME, grey_picture, write_native
from worker.compose import Subject, predict
from worker.engine import Engine, load_engine
from worker.loops import MAX_DECODERS, AnalysedLoop, RefusedLoop, analyse_files

SECTOR = Sector(rows=600, columns=800, step=2, sides=(Side(0.8, 0.6, 1 / 3), Side(-0.8, 0.6, -0.1)),
                arc=Arc(200.1, 10.7, 250 / 7))  # fmt: skip


def test_a_result_comes_back_with_its_sector_to_the_last_bit() -> None:
    loop = AnalysedLoop(outputs={Task.LVEF: [[1 / 3]]}, frames=(0, 2, 4), sector=SECTOR, header_view=View.PLAX)

    assert AnalysedLoop.from_json(json.loads(json.dumps(loop.to_json()))) == loop


def test_a_result_of_an_older_version_has_no_sector_and_no_view_of_its_header() -> None:
    document = AnalysedLoop(outputs={}, frames=(0,), sector=None).to_json()
    del document["sector"], document["header_view"]

    kept = AnalysedLoop.from_json(document)

    assert (kept.sector, kept.header_view) == (None, None)


def test_a_file_s_view_goes_with_its_verdict_and_silences_it(tmp_path: Path) -> None:
    """From the header of the file to what the study says: the shipped networks see four chambers, the header two."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "399232001", "SCT", "Apical two chamber"
    frames = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=20, frame_time_ms=50.0,
                    rng=np.random.default_rng(0))  # fmt: skip
    regions = Sequence([region(Screen(), spatial_format=1, data_type=1)])
    loops = {
        "1.1": write_native(tmp_path / "a.dcm", frames, SequenceOfUltrasoundRegions=regions),
        "1.2": write_native(
            tmp_path / "b.dcm", frames, SequenceOfUltrasoundRegions=regions, ViewCodeSequence=Sequence([item])
        ),
    }
    engine = load_engine(SHIPPED, device="cpu")

    verdicts = list(analyse_files(list(loops.values()), engine))
    subjects = [
        Subject(
            sop_instance_uid=uid, sop_class_uid=US_MULTI_FRAME, series_instance_uid="1.9", path=path, verdict=verdict
        )
        for (uid, path), verdict in zip(loops.items(), verdicts, strict=True)
    ]
    prediction = predict(subjects, engine)

    assert [(one.key, one.view, one.is_contradicted) for one in prediction.loops] == [
        ("1.1", View.A4C, False), ("1.2", None, True),
    ]  # fmt: skip
    assert {result.loops for result in prediction.results} == {("1.1",)}


class Files(list[Path]):
    """Files of which is known how many were taken so far."""

    num_taken = 0

    def __iter__(self) -> Iterator[Path]:
        for path in list.__iter__(self):
            self.num_taken += 1
            yield path


@dataclass
class Looker:
    """An engine that notes how many files wait behind the loop that it looks at."""

    files: Files
    spec: ClipSpec = field(default_factory=ClipSpec)
    waiting: list[int] = field(default_factory=list)

    def look_at(self, clips: Clips) -> LoopOutputs:
        """Return an answer by which the loop is known: its last frame."""
        self.waiting.append(self.files.num_taken - len(self.waiting) - 1)
        return {Task.LVEF: [[float(clips.frames[-1])]]}


def a_loop(folder: Path, num_frames: int) -> Path:
    """Write a loop that is known by its length."""
    frames_THWC = np.repeat(grey_picture(num_frames=num_frames)[..., None], 3, axis=-1)
    return write_native(folder / f"{num_frames}.dcm", frames_THWC, FrameTime=100.0)


def test_verdicts_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    missing = tmp_path / "no such file.dcm"
    files = Files([a_loop(tmp_path, 12), a_loop(tmp_path, 16), missing, a_loop(tmp_path, 13)])

    verdicts = list(analyse_files(files, cast(Engine, Looker(files))))

    assert isinstance(verdicts[2], RefusedLoop)
    assert [one.outputs[Task.LVEF] for one in verdicts if isinstance(one, AnalysedLoop)] == [[[11]], [[15]], [[12]]]


def test_as_many_loops_wait_behind_the_one_that_is_looked_at_as_are_decoded_at_once(tmp_path: Path) -> None:
    files = Files([a_loop(tmp_path, 12)] * (MAX_DECODERS + 2))
    looker = Looker(files)

    list(analyse_files(files, cast(Engine, looker)))

    num_decoders = min(MAX_DECODERS, os.cpu_count() or 1)
    assert looker.waiting == [min(num_decoders, len(files) - number) for number in range(1, len(files) + 1)]


def test_a_loop_is_decoded_on_one_core(tmp_path: Path) -> None:
    seen: list[int] = []

    class Noted(PosixPath):
        def __fspath__(self) -> str:
            seen.append(torch.get_num_threads())
            return super().__fspath__()

    files = Files([Noted(a_loop(tmp_path, 12))])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(analyse_files(files, cast(Engine, Looker(files))))
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)

    assert (set(seen), after) == ({1}, 3)
