"""The Celery task: a bell for a study's id. Everything it knows stands in the ledger."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import structlog
from celery.signals import setup_logging, worker_init, worker_process_init, worker_process_shutdown, worker_shutdown

from dicom_node.ledger.engine import AWAY
from dicom_node.logs import configure_logs
from dicom_node.metrics.shared import count_in
from dicom_node.processes import die_with_parent
from dicom_node.settings import load_settings
from worker.analyse import Analyst, open_analyst
from worker.app import app
from worker.errors import NoEnsemble, UnreadableNow
from worker.metrics import WorkerMetrics
from worker.metrics_server import counts

log = structlog.get_logger(__name__)

_held: tuple[Analyst, Callable[[], None]] | None = None  # one a child process: it holds the networks and the device
_counting = ExitStack()
_counts: Path | None = None  # the folder that the children count in


@setup_logging.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _configure(**_: object) -> None:
    configure_logs()


@worker_init.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _begin_to_count(**_: object) -> None:
    """In the parent, before it has children: they count where it says, and it serves what they count."""
    global _counts
    _counts = _counting.enter_context(counts(load_settings()))


@worker_shutdown.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _end_to_count(**_: object) -> None:
    _counting.close()


@worker_process_init.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _warm_up(**_: object) -> None:
    """Load the networks in the child, before the first study waits for them; CUDA is never touched in the parent."""
    die_with_parent()
    count_in(_counts)
    try:
        _get_analyst()
    except NoEnsemble as error:
        log.error("ensemble_refused", reason=str(error))


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _cool_down(**_: object) -> None:
    if _held is not None:
        _analyst, close = _held
        close()


@app.task(name="worker.analyse_study")  # type: ignore[untyped-decorator]  # celery ships no types
def analyse_study(study_id: int) -> None:
    """Analyse what waits in a study, however often it is rung for."""
    with structlog.contextvars.bound_contextvars(study=study_id):
        try:
            _get_analyst().drain(study_id)
        except NoEnsemble as error:
            # Nothing was claimed: the node rings again until the ensemble can be used.
            _get_metrics().interrupted("no_ensemble")
            log.error("ensemble_refused", reason=str(error))
        except AWAY as error:
            # The node rings again when the ledger is back.
            _get_metrics().interrupted("ledger")
            log.warning("analysis_put_off", reason=type(error).__name__)
        except Exception as error:
            _get_metrics().interrupted("disk" if isinstance(error, UnreadableNow) else "mistake")
            # What was claimed comes back by its lease; the attempt is counted. Celery is not told: nobody asks it, and
            # on a MemoryError of a task it ends the whole worker.
            log.exception("analysis_failed")


def _get_analyst() -> Analyst:
    global _held
    if _held is None:
        _held = open_analyst(load_settings(), _get_metrics())
    return _held[0]


@cache
def _get_metrics() -> WorkerMetrics:
    return WorkerMetrics()
