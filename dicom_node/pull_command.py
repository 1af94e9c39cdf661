"""`dicom-node pull`: a study from a peer into this node's store and ledger, whether the node runs or not."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dicom_node.audit_trail import AuditTrail, this_application
from dicom_node.clock import utc_now
from dicom_node.dispatch import Bell
from dicom_node.errors import RetrieveError
from dicom_node.identity import UID
from dicom_node.intake import Intake, Ring
from dicom_node.ledger.engine import Sessions
from dicom_node.retrieve import Home, Pulled, Tell, pull
from dicom_node.road import Road
from dicom_node.scp import noting
from dicom_node.settings import Peer, Settings
from dicom_node.store import InstanceStore
from dicom_node.transfers import Transfers


def run(
    settings: Settings, sessions: Sessions, peer: Peer, study_uid: UID, by: Road | None, patience: timedelta
) -> Pulled:
    """Fetch the study; the running node reports it when it has been quiet, as any other.

    Raises:
        ConfigurationError, RetrieveError: nothing came, with the reason.
    """
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what it says is said in one line, with the remedy
    node = settings.node
    store = InstanceStore(node.data_dir, min_free_bytes=node.min_free_bytes)
    with _ringing(settings) as ring, _bar(study_uid) as bar:
        trail = AuditTrail(settings.audit, node, utc_now)
        transfers = Transfers(this_application(node), trail.record, pulled=True)
        receive = noting(Intake(sessions, store, utc_now, ring).receive, partial(transfers.note, peer.name, peer.host))
        home = Home(node=node, sessions=sessions, store=store, receive=receive)
        try:
            return pull(home, peer, study_uid, by=by, patience=patience, progress=bar)
        finally:
            transfers.settle(lambda _one: False)


def show(pulled: Pulled) -> None:
    """Print the sum for people."""
    typer.echo(
        f"study {pulled.study_uid} from {pulled.peer} by {pulled.road.label}: {len(pulled.found)} found, "
        f"{len(pulled.kept)} kept, {len(pulled.known)} known"
    )
    for uid, reason in pulled.refused:
        typer.echo(f"refused {uid or 'an instance without a UID'}: {reason}")
    for uid in pulled.missing:
        typer.echo(f"missing {uid}")


def check(pulled: Pulled) -> None:
    """Let a study of which something is not here end the command with 1.

    Raises:
        RetrieveError: what is not here, and what to do.
    """
    if pulled.is_complete:
        return
    here = len(pulled.found & (pulled.kept | pulled.known))
    text = f"{here} of {len(pulled.found)} instances of study {pulled.study_uid} are here"
    if pulled.error is not None:
        raise RetrieveError(f"{pulled.error}; {text}; the same command again fetches the rest")
    if pulled.missing:
        raise RetrieveError(f"{pulled.peer}: did not send all; {text}; try another road (--by)")
    raise RetrieveError(f"{text}: the others were refused, with the reasons that are listed")


@contextmanager
def _ringing(settings: Settings) -> Iterator[Ring]:
    """Call the workers; with the embedded broker the node's clock does within seconds."""
    url = settings.broker.url.get_secret_value()
    if not url:
        yield lambda _study_id: None
        return
    bell = Bell(url)
    try:
        yield bell.ring
    finally:
        bell.close()


@contextmanager
def _bar(study_uid: UID) -> Iterator[Tell]:
    """Show how far it is, on a terminal alone."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(str(study_uid), total=None)
        yield lambda here, found: bar.update(task, completed=here, total=found)
