"""Where a run comes from: its code, its data, and the weights that it begins with.

Phantoms are inherited: weights that began with weights that saw phantoms saw them too, however many runs ago.
"""

import json
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from model.bundle import sha256_of
from model.tasks import Task
from trainer.config import FinetuneConfig, PretrainConfig
from trainer.data.cohort import Cohort
from trainer.data.store import dataset_names
from trainer.run import PROVENANCE, Provenance, read_metadata, read_provenance, weights_file


def provenance_of(
    config: PretrainConfig | FinetuneConfig, cohort: Cohort, tasks: tuple[Task, ...], command: tuple[str, ...]
) -> Provenance:
    """Return where a run that begins now comes from.

    Raises:
        RunError: the weights to start from cannot be read.
    """
    start = config.init if isinstance(config, PretrainConfig) else config.encoder
    weights = weights_file(Path(start)) if start else None
    return Provenance(
        status="running",
        code_version=version("echo-ai-node"),
        git_revision=_git_revision(),
        seed=config.seed,
        command=command,
        data={name: store.digest for name, store in zip(dataset_names(cohort.stores), cohort.stores, strict=True)},
        start_sha256=sha256_of(weights) if weights else None,
        num_samples=len(cohort.entries),
        num_subjects=cohort.num_subjects,
        views=cohort.views(tasks),
        is_phantom=any(store.info.is_phantom for store in cohort.stores)
        or (weights is not None and saw_phantoms(weights)),
        started_at=datetime.now(UTC),
    )


def saw_phantoms(weights: Path) -> bool:
    """Return whether phantoms went into weights.

    What `trainer import-weights` wrote saw none. Weights that are too old to say it saw none only if the `run.json`
    beside them says so and that they began with no others; else nobody knows, and they count as if they had.

    Raises:
        RunError: they cannot be read.
    """
    metadata = read_metadata(weights)
    if json.loads(metadata.get("config", "{}")).get("kind") == "import":
        return False
    beside = read_provenance(weights.parent) if (weights.parent / PROVENANCE).is_file() else None
    if beside is not None and beside.is_phantom:
        return True
    said = json.loads(metadata.get("best", "{}")).get("is_phantom")
    return bool(said) if said is not None else beside is None or beside.start_sha256 is not None


def _git_revision() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.stdout.strip() if answer.returncode == 0 else ""
