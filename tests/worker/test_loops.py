"""A verdict is kept in the ledger and comes back as it was."""

import json

from model.clip.sector import Arc, Sector, Side
from model.tasks import Task
from worker.loops import AnalysedLoop

SECTOR = Sector(rows=600, columns=800, step=2, sides=(Side(0.8, 0.6, 1 / 3), Side(-0.8, 0.6, -0.1)),
                arc=Arc(200.1, 10.7, 250 / 7))  # fmt: skip


def test_a_result_comes_back_with_its_sector_to_the_last_bit() -> None:
    loop = AnalysedLoop(outputs={Task.LVEF: [[1 / 3]]}, frames=(0, 2, 4), sector=SECTOR)

    assert AnalysedLoop.from_json(json.loads(json.dumps(loop.to_json()))) == loop


def test_a_result_of_an_older_version_has_no_sector() -> None:
    document = AnalysedLoop(outputs={}, frames=(0,), sector=None).to_json()
    del document["sector"]

    assert AnalysedLoop.from_json(document).sector is None
