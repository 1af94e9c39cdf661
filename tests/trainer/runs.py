"""Finished runs and ensembles of a few weights, for tests of what comes after training."""

from collections.abc import Sequence
from pathlib import Path

from model import bundle, ensemble
from model.clip.spec import ClipSpec
from model.ensemble import EnsembleManifest, Member
from tests.trainer.stores import SPEC, TINY_NET, make_store
from trainer.config import FinetuneConfig, resolve
from trainer.data.manifest import Sample
from trainer.finetune import finetune
from trainer.run import open_finished


def half_tested(sample: Sample) -> Sample:
    """Return the sample on the test side if its subject's number is odd."""
    number = int(sample.subject)
    split = "test" if number % 2 else "val" if number % 10 == 0 else "train"
    return sample.model_copy(update={"split": split})


def make_tested_store(path: Path, *, subjects: int = 32, seed: int = 0) -> Path:
    """Write a store of discs, half of whose subjects are on the test side."""
    return make_store(path, subjects=subjects, seed=seed, change=half_tested)


def make_run(
    path: Path,
    stores: Sequence[Path],
    tasks: Sequence[str],
    *,
    clip: ClipSpec = SPEC,
    epochs: int = 1,
    seed: int = 3,
    encoder: Path | None = None,
) -> Path:
    """Train a network of a few weights."""
    content = {"net": TINY_NET, "clip": clip.model_dump(), "batch": 4, "epochs": epochs, "seed": seed,
               "tasks": list(tasks), "optimiser": {"peak_lr": 3e-3},
               "encoder": str(encoder or "")}  # fmt: skip
    finetune(stores, path, resolve(FinetuneConfig, "small", [], content), resume=False, command=())
    return path


def make_ensemble(path: Path, runs: Sequence[Path], *, threshold: float = 0.3) -> Path:
    """Publish runs as an ensemble, without any of the checks."""
    path.mkdir()
    members = []
    for number, folder in enumerate(runs):
        run = open_finished(folder)
        saved = bundle.save(
            path / f"member{number}",
            run.network(),
            net=run.config.net,
            clip=run.config.clip,
            views=run.views,
            data_digests=run.data_digests,
            code_version="0",
            seed=run.config.seed,
        )
        members.append(Member(name=f"member{number}", sha256=saved.digest))
    manifest = EnsembleManifest(
        name="discs",
        version="1",
        statement="discs are no hearts",
        bundles=tuple(members),
        view_threshold=threshold,
        view_floor=threshold,
    )
    ensemble.save(path, manifest)
    return path
