"""Pictures are written for whatever an evaluation can hold, one sample and one class included."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.tasks import CATALOGUE, Task
from trainer.plots import draw_task
from trainer.scores import Answers, Row


def answers(task: Task, truth: list[float], said: list[list[float]]) -> Answers:
    names = [str(place) for place in range(len(truth))]
    rows = tuple(Row(dataset="d", subject=name, study=name, key=name, view="A4C") for name in names)
    return Answers(task=task, rows=rows, truth_N=np.array(truth), said_NK=np.array(said))


def uniform(task: Task) -> list[float]:
    number = CATALOGUE[task].num_outputs
    return [1.0 / max(number, 2)] * number


CASES = {
    "numbers": answers(Task.LVEF, [50.0, 60.0, 70.0], [[52.0], [55.0], [71.0]]),
    "one number": answers(Task.LVEDV, [120.0], [[100.0]]),
    "a constant": answers(Task.LVESV, [60.0, 60.0], [[60.0], [60.0]]),
    "both classes": answers(Task.LVEF_REDUCED, [0.0, 1.0], [[0.2], [0.9]]),
    "one class": answers(Task.LVEF_REDUCED, [0.0, 0.0], [[0.2], [1.0]]),
    "grades": answers(Task.AORTIC_STENOSIS, [0.0, 4.0], [uniform(Task.AORTIC_STENOSIS)] * 2),
    "a view": answers(Task.VIEW, [2.0], [uniform(Task.VIEW)]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_task_has_its_pictures(name: str, tmp_path: Path) -> None:
    draw_task(CASES[name], tmp_path)

    pictures = sorted(tmp_path.iterdir())
    assert len(pictures) == (2 if CASES[name].said_NK.shape[1] == 1 and CASES[name].task != Task.LVEF_REDUCED else 3)
    for file in pictures:
        with Image.open(file) as picture:
            picture.verify()


def test_the_same_answers_draw_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_task(CASES["numbers"], tmp_path / name)

    assert (tmp_path / "a" / "lvef_scatter.png").read_bytes() == (tmp_path / "b" / "lvef_scatter.png").read_bytes()
