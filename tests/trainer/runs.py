"""Finished runs and ensembles of a few weights, for tests of what comes after training."""

from collections.abc import Sequence
from pathlib import Path

from model.clip.spec import ClipSpec
from tests.trainer.stores import SPEC, TINY_NET, make_store
from trainer.config import FinetuneConfig, resolve
from trainer.data.manifest import Sample
from trainer.finetune import finetune


def half_tested(sample: Sample) -> Sample:
    """Return the sample on the test side if its subject's number is odd."""
    number = int(sample.subject)
    split = "test" if number % 2 else "val" if number % 10 == 0 else "train"
    return sample.model_copy(update={"split": split})


def make_tested_store(path: Path, *, subjects: int = 32, seed: int = 0) -> Path:
    """Write a store of discs, half of whose subjects are on the test side."""
    return make_store(path, subjects=subjects, seed=seed, change=half_tested)


def make_run(path: Path, stores: Sequence[Path], tasks: Sequence[str], clip: ClipSpec = SPEC) -> Path:
    """Train a network of a few weights for one epoch."""
    content = {"net": TINY_NET, "clip": clip.model_dump(), "batch": 4, "epochs": 1, "seed": 3, "tasks": list(tasks)}
    finetune(stores, path, resolve(FinetuneConfig, "small", [], content), resume=False, command=())
    return path
