"""From each data set's layout on disk, by the trainer's commands alone, to reports of a node that was never stopped."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from model.ensemble import Ensemble
from tests import warm
from tests.doubles.pacs import running_pacs
from tests.system.nodes import WITHOUT_PICTURES, configured, running
from tests.system.studies import phantom_study

ROOT = Path(__file__).parents[2]
LOOP_TASKS = ("lvef", "lvedv", "lvesv", "lvef_reduced")
LAYOUTS = {
    "mimic": (4, (*LOOP_TASKS, "aortic_stenosis", "view")),
    "echonet": (12, LOOP_TASKS),
    "camus": (10, LOOP_TASKS),
    "tmed": (16, ("aortic_stenosis", "view")),
}
"""Layout -> cases, tasks."""
BRIEF = ("--config", "small", "--set", "max_steps=2", "--set", "batch=8", "--set", "precision=fp32")


def trainer(*arguments: object) -> str:
    """Run a command as a user does; return what it printed."""
    done = warm.run("-m", "trainer", *arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def train(layout: str, folder: Path) -> Path:
    """Go from phantoms on disk to an evaluated run; return it."""
    cases, tasks = LAYOUTS[layout]
    data, store, encoder, run = (folder / name for name in ("data", "store", "encoder", "run"))
    trainer("phantom", "--layout", layout, "--out", data, "--cases", cases, "--seed", 7)
    trainer("prepare", layout, data, "--out", store, "--config", "small", "--seed", _SEEDS[layout], "--jobs", 1)
    trainer("pretrain", "--data", store, "--out", encoder, *BRIEF)
    chosen = [part for task in tasks for part in ("--task", task)]
    trainer("finetune", *chosen, "--data", store, "--out", run, "--encoder", encoder, *BRIEF)
    trainer("evaluate", run, "--data", store, "--split", "test", "--out", folder / "figures")
    return run


_SEEDS = {"mimic": 9, "echonet": 0, "camus": 0, "tmed": 0}  # of the split: four patients on three sides


def version_in(report: Dataset) -> str:
    """Return the ensemble's version, as the report names it, with a number or without any."""
    _, ensemble = report.SoftwareVersions
    return str(ensemble).rpartition(" ")[2]


@pytest.mark.timeout(900)
def test_every_layout_ends_in_the_reports_of_a_running_node(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:  # most of each command is its start
        runs = dict(zip(LAYOUTS, pool.map(lambda layout: train(layout, tmp_path / layout), LAYOUTS), strict=True))
    with ExitStack() as stack:
        pacs = stack.enter_context(running_pacs())
        extra = f'[ensemble]\npath = "{shelf}"\n{WITHOUT_PICTURES}'
        node = configured(tmp_path / "node", pacs_port=pacs.port, pacs_ae="PACS", extra=extra)
        for number, layout in enumerate(LAYOUTS):
            # A data set without views cannot be an ensemble: the run of the first recognises them.
            members = [runs[layout]] if "view" in LAYOUTS[layout][1] else [runs[layout], runs["mimic"]]
            trainer("publish", *members, "--ensemble", shelf, "--version", layout, "--force", "another data set")
            if number == 0:
                stack.enter_context(running(node))
            study = phantom_study(seed=20 + number)
            assert node.send(study) == [0x0000] * len(study)
            node.wait_for(study[0].StudyInstanceUID)
            (report,) = [dcmread(io.BytesIO(one), force=True) for one in pacs.stored[number:]]
            assert report.StudyInstanceUID == study[0].StudyInstanceUID
            said.append(version_in(report))
        # The worker was never started anew: it took up each of the others while it ran.
        assert [one["version"] for one in node.events("ensemble_replaced")] == list(LAYOUTS)[1:]
        trainer("publish", "--rollback", "--ensemble", shelf)

    assert said == list(LAYOUTS)
    assert Ensemble.load(shelf).info.version == "camus"
