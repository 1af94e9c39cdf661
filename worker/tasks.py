"""The Celery task: a bell for a study's id. Everything it knows stands in the ledger."""

from collections.abc import Callable

import structlog
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from dicom_node.logs import configure_logs
from dicom_node.processes import die_with_parent
from dicom_node.settings import load_settings
from worker.analyse import Analyst, open_analyst
from worker.app import app
from worker.errors import NoEnsemble

log = structlog.get_logger(__name__)

_held: tuple[Analyst, Callable[[], None]] | None = None  # one a child process: it holds the networks and the device


@setup_logging.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _configure(**_: object) -> None:
    configure_logs()


@worker_process_init.connect  # type: ignore[untyped-decorator]  # celery ships no types
def _warm_up(**_: object) -> None:
    """Load the networks in the child, before the first study waits for them; CUDA is never touched in the parent."""
    die_with_parent()
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
            log.error("ensemble_refused", reason=str(error))
        except Exception:
            # What was claimed comes back by its lease; the attempt is counted.
            log.exception("analysis_failed")
            raise


def _get_analyst() -> Analyst:
    global _held
    if _held is None:
        _held = open_analyst(load_settings())
    return _held[0]
