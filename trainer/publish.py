"""Publish: runs that were checked become a new version of an ensemble, which workers take up between two batches.

A version is a folder of the shelf (`trainer.shelf`) with, beside the ensemble itself,

publication.json  which runs, data and code it was made of, and why if it was forced
evaluation.json   what each run's evaluation said
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Literal

import numpy as np

from model import bundle, ensemble
from model.bundle import Bundle, Closed, Sha256
from model.ensemble import Ensemble, EnsembleManifest, Member, view_floor_of
from model.tasks import Task
from trainer.acceptance import Evaluation, Published, objections, read_evaluation, read_published
from trainer.errors import PublishError, UsageError
from trainer.evaluate import EVALUATION
from trainer.provenance import saw_phantoms
from trainer.run import BEST, FinishedRun, open_finished
from trainer.shelf import locked

log = logging.getLogger(__name__)

PUBLICATION = "publication.json"
VIEW_THRESHOLD = 0.6
"""Smallest mean probability at which a view counts as recognised, unless another is asked for."""

OF_PHANTOMS = "trained on phantoms: no meaning for patients"
OF_PATIENTS = "research use: not a medical device"


class MadeOf(Closed):
    """A run that became a member."""

    run: str
    """Its folder."""
    weights_sha256: Sha256
    """Digest of the weights, as the run keeps them."""
    tasks: tuple[Task, ...]
    """What it answers."""
    seed: int
    """Of its training."""
    data: dict[str, str]
    """Data set -> digest of the store that it was trained on."""
    code_version: str
    """Of the package that trained it."""
    git_revision: str
    """Of the code that trained it."""


class Publication(Closed):
    """The content of `publication.json`."""

    format: Literal[1] = 1
    """Version of this format."""
    name: str
    """Name of the ensemble."""
    version: str
    """Its version."""
    published_at: datetime
    """UTC."""
    code_version: str
    """Of the package that published it."""
    replaces: str | None
    """The version that was in use, to which a rollback goes."""
    forced_because: str | None
    """Why it was published all the same."""
    objections: tuple[str, ...]
    """What spoke against it."""
    members: dict[str, MadeOf]
    """Bundle -> run."""


def publish(
    runs: Sequence[Path],
    shelf: Path,
    version: str,
    *,
    name: str = "echo-vision-fm",
    force: str | None = None,
    view_threshold: float = VIEW_THRESHOLD,
    view_floor: float | None = None,
    half: bool = False,
) -> Path:
    """Put the runs into use as a new version, and return its folder; the old version stays beside it.

    A call that was killed when the version was whole, but not in use yet, is finished by the same call.

    Args:
        runs: of `trainer finetune`, each one member of every task that it learned.
        shelf: folder of the versions; made if it is not there.
        version: its name, which no version has yet, but one that a kill kept from use.
        name: of the ensemble, as reports give it.
        force: why it is to replace what is in use although something speaks against it.
        view_threshold: smallest mean probability at which a view counts as recognised.
        view_floor: from here up to the threshold a view is uncertain; at most the threshold. None: the usual.
        half: weights are stored as float16, half the bytes; they are computed with as float32.

    Raises:
        RunError: a run is not finished.
        PublishError: something speaks against it, or the disk does not take it; what was in use stays.
        UsageError: the version has no proper name, a run is given twice, or the floor is over the threshold.
    """
    if view_floor is None:
        view_floor = view_floor_of(view_threshold)
    if view_floor > view_threshold:
        raise UsageError(f"--view-floor {view_floor}: is over --view-threshold {view_threshold}: give a smaller one")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is given twice: it would count as two members that always agree")
    finished = [open_finished(run) for run in runs]
    evaluations = [read_evaluation(run) for run in finished]
    with locked(shelf, make=True) as held:
        path = held.version_path(version)
        if path.exists() and path != held.left:
            raise _taken(path)
        before = held.current
        said = objections(
            read_published(before) if before else (), [Evaluation.model_validate(one) for one in evaluations]
        )
        if said and force is None:
            raise PublishError(f"{'; '.join(said)}: train better, or say with --force why it is to be published")
        publication = _publication(finished, name, version, before, force, said)
        statement = OF_PHANTOMS if any(saw_phantoms(run.path / BEST) for run in finished) else OF_PATIENTS

        def write(folder: Path) -> None:
            members = {
                member: _write_member(folder / member, run, half=half)
                for member, run in zip(publication.members, finished, strict=True)
            }
            manifest = EnsembleManifest(
                name=name,
                version=version,
                statement=statement,
                bundles=tuple(Member(name=member, sha256=made.digest) for member, made in members.items()),
                view_threshold=view_threshold,
                view_floor=view_floor,
            )
            ensemble.save(folder, manifest)
            bundle.write_json(folder / PUBLICATION, publication)
            bundle.write_json(
                folder / EVALUATION, Published(members=dict(zip(publication.members, evaluations, strict=True)))
            )
            Ensemble.load(folder)  # as a worker will

        if not path.exists():
            held.add(path, write)
        elif not _is_made_by(publication, path, statement, (view_floor, view_threshold), half=half):
            raise _taken(path)
        held.switch()
    log.info("%s %s is in use, in the place of %s", name, version, before.name if before else "nothing")
    return path


def roll_back(shelf: Path) -> Path:
    """Put the version that the one in use replaced into use again, and return its folder; again: one further back.

    Raises:
        PublishError: there is none, or nobody knows which.
    """
    with locked(shelf, make=False) as held:
        current = held.current
        if current is None:
            raise PublishError(f"{shelf}: has no version in use to go back from: publish one")
        file = current / PUBLICATION
        if not file.is_file():
            raise PublishError(f"{current}: has no {PUBLICATION}, which would say what it replaced: publish a version")
        replaced = bundle.read_closed(file, Publication).replaces
        if replaced is None:
            raise PublishError(f"{shelf}: has no previous version to go back to: {current.name} was the first")
        before = held.version_path(replaced)
        if not (before / ensemble.MANIFEST).is_file():
            raise PublishError(f"{before}: is gone, and {current.name} replaced it: publish a version")
        held.switch_back(before)
    return before


def _taken(version: Path) -> PublishError:
    return PublishError(f"{version}: is there already, and a version never changes: choose another --version")


def _is_made_by(
    publication: Publication, version: Path, statement: str, view_band: tuple[float, float], *, half: bool
) -> bool:
    """Return whether a whole version is what a publication would make.

    Raises:
        BundleError: the version is damaged.
    """
    info = Ensemble.load(version).info  # as a worker will
    made = bundle.read_closed(version / PUBLICATION, Publication)
    stored = [bundle.read_closed(version / name / bundle.MANIFEST, bundle.Manifest) for name in made.members]
    return (
        made.model_copy(update={"published_at": publication.published_at}) == publication
        and (info.statement, (info.view_floor, info.view_threshold)) == (statement, view_band)
        and all(one.weights_dtype == ("float16" if half else "float32") for one in stored)
    )


def _publication(
    runs: Sequence[FinishedRun],
    name: str,
    version: str,
    before: Path | None,
    force: str | None,
    said: Sequence[str],
) -> Publication:
    return Publication(
        name=name,
        version=version,
        published_at=datetime.now(UTC),
        code_version=package_version("echo-ai-node"),
        replaces=before.name if before else None,
        forced_because=force if said else None,
        objections=tuple(said),
        members={
            f"member-{number}": MadeOf(
                run=str(run.path),
                weights_sha256=run.weights_sha256,
                tasks=run.config.tasks,
                seed=run.config.seed,
                data=run.data_digests,
                code_version=run.provenance.code_version,
                git_revision=run.provenance.git_revision,
            )
            for number, run in enumerate(runs)
        },
    )


def _write_member(folder: Path, run: FinishedRun, *, half: bool) -> Bundle:
    """Write a run's network as a bundle whose answers are those of the run."""
    network = run.network()
    made = bundle.save(
        folder,
        network,
        net=run.config.net,
        clip=run.config.clip,
        views=run.views,
        data_digests=run.data_digests,
        code_version=run.provenance.code_version,
        seed=run.config.seed,
        view_temperature=run.view_temperature,
        weights_dtype="float16" if half else "float32",
    )
    reference = made.manifest.reference
    tolerance = 2e-2 if half else reference.rtol  # float16 has eleven bits
    for task, answer in bundle.reference_outputs(network, made.manifest, "cpu").items():
        if not np.allclose(reference.outputs[task], answer, rtol=tolerance, atol=max(reference.atol, tolerance)):
            raise PublishError(f"{run.path}: {task} answers otherwise once it is stored: publish without --half")
    return made
