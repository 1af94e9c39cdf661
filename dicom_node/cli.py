"""`dicom-node`: parse, call one function, print, return an exit code (0 done, 1 failed, 2 wrong call or settings)."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.clock import utc_now
from dicom_node.errors import ConfigurationError, InvalidUID, NodeError, NotInstalled, UnknownPeer, check_all
from dicom_node.identity import UID, parse_uid
from dicom_node.ledger import studies as ledger_studies
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.schema import StudyState
from dicom_node.ledger.views import StudyJson, studies_json, study_json
from dicom_node.logs import configure_logs
from dicom_node.road import Road
from dicom_node.settings import Settings, load_settings

if TYPE_CHECKING:
    from dicom_node.housekeeping import Cleaned

# What only one command needs is imported there: the network and the page cost a second that `studies` need not wait.
app = typer.Typer(
    help="The echo AI node: every echocardiogram read by Echo-Vision-FM, answered with a DICOM Structured Report.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (TOML); default: $ECHO_NODE_CONFIG, or defaults.")
]


def _peers(context: typer.Context) -> list[str]:
    """Return the names that a shell may complete; a wrong configuration is no matter of a shell."""
    try:
        return [peer.name for peer in load_settings(context.params.get("config")).peers]
    except NodeError:
        return []


PeerName = Annotated[str, typer.Argument(help="Name of a peer of the configuration.", autocompletion=_peers)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]


def _writable_png(path: Path | None) -> Path | None:
    """Refuse a picture that could not be written, before an hour of analysis is spent on it."""
    if path is not None:
        folder = path.absolute().parent
        if path.suffix.lower() != ".png":
            raise typer.BadParameter(f"{path} does not end in .png")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise typer.BadParameter(f"{folder} is no folder that can be written to")
    return path


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(version("echo-ai-node"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take what goes before the command; `main` looks for --debug itself."""


@app.command()
def demo(
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Folder for the node's files; default: temporary.")
    ] = None,
) -> None:
    """Send a synthetic study through a node of its own and print the report that comes back."""
    with _needs_worker():
        from worker.demo import run
    raise typer.Exit(run(keep))


@app.command()
def serve(config: Config = None) -> None:
    """Run the node until SIGTERM."""
    from dicom_node.serve import serve as run_node

    configure_logs()
    run_node(load_settings(config), config)


@app.command()
def analyse(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files and folders.", exists=True)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the reports, one a study.")],
    ensemble: Annotated[
        Path | None, typer.Option("--ensemble", help="Ensemble folder; default: the shipped one.")
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Picture of every instance, of its crop, and of its verdict.",
            dir_okay=False,
            writable=True,
            callback=_writable_png,
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Write the pictures and the PDF too that go out with a report.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Analyse files without a network: one Structured Report a study."""
    configure_logs(level="WARNING", json=False)
    with _needs_worker():
        from worker.offline import run
    raise typer.Exit(run(paths, out, ensemble, as_json, contact_sheet, with_pictures=pictures))


@app.command()
def studies(
    state: Annotated[StudyState | None, typer.Option("--state", help="Only studies in this state.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """List what the node holds."""
    settings = load_settings(config)
    with _ledger(settings) as sessions:
        found = studies_json(sessions, state, data_dir=settings.node.data_dir)
    if as_json:
        _print_json(found)
    else:
        Console().print(_studies_table(found))


@app.command()
def study(uid: str, as_json: AsJson = False, config: Config = None) -> None:
    """Show one study with its instances, results, reports, deliveries and history."""
    settings = load_settings(config)
    with _ledger(settings) as sessions:
        found = study_json(sessions, _uid(uid), data_dir=settings.node.data_dir)
    if as_json:
        _print_json(found)
    else:
        _print_study(found)


@app.command()
def retry(
    uid: Annotated[str | None, typer.Argument(help="Study Instance UID.")] = None,
    all_failed: Annotated[bool, typer.Option("--all-failed", help="Every study that failed.")] = False,
    config: Config = None,
) -> None:
    """Take up a failed study where it stopped; of one that did not fail, the instances that were given up."""
    if (uid is None) is not all_failed:
        raise typer.BadParameter("name a study, or use --all-failed")
    settings = load_settings(config)
    with _ledger(settings) as sessions:
        wanted = [_uid(uid)] if uid is not None else _failed(sessions)
        for one in wanted:
            state = ledger_studies.retry(sessions, one, utc_now)
            if state is None and uid is not None:
                raise NodeError(f"study {uid} has not failed, and nothing of it was given up: nothing to retry")
            if state is StudyState.ANALYSING:
                _ring(settings, ledger_studies.study_id_of(sessions, one))
            if state is not None:
                typer.echo(f"study {one} is {state.value}")


@app.command()
def reprocess(uid: str, config: Config = None) -> None:
    """Analyse a study again: a new report that names its predecessor."""
    settings = load_settings(config)
    study_uid = _uid(uid)
    with _ledger(settings) as sessions:
        ledger_studies.reprocess(sessions, study_uid, utc_now)
        _ring(settings, ledger_studies.study_id_of(sessions, study_uid))
    typer.echo(f"study {uid} is {StudyState.ANALYSING.value}")


@app.command()
def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Remove now what retention would remove in time: images of old delivered studies, quarantine, orphans."""
    from dicom_node.audit_trail import AuditTrail, tell_deleted
    from dicom_node.housekeeping import clean
    from dicom_node.objects import open_objects
    from dicom_node.store import InstanceStore

    configure_logs(level="CRITICAL")  # what is removed and what is not is printed
    settings = load_settings(config)
    store = InstanceStore(settings.node.data_dir, settings.node.min_free_bytes, open_objects(settings.objects))
    trail = AuditTrail(settings.audit, settings.node, utc_now)
    tell = partial(tell_deleted, trail.record, settings.node)
    with _ledger(settings) as sessions:
        cleaned = clean(sessions, store, settings.retention, settings.room, utc_now, dry_run=dry_run, tell=tell)
    if as_json:
        _print_json(cleaned.to_json(dry_run=dry_run))
    else:
        _print_cleaned(cleaned, dry_run=dry_run)
    if trail.num_lost:
        raise NodeError(f"{trail.num_lost} messages of the audit trail could not be written: is the disk full?")
    if cleaned.errors:
        raise NodeError(f"{len(cleaned.errors)} could not be removed: {cleaned.errors[0]}")


@app.command()
def echo(peer: PeerName, config: Config = None) -> None:
    """Send a C-ECHO to a peer of the configuration."""
    from dicom_node.senders import associate
    from dicom_node.services import PLAIN, VERIFICATION

    settings = load_settings(config)
    target = settings.peer(peer)
    association = associate(settings.node, target, {VERIFICATION: PLAIN})
    answer = association.send_c_echo()
    association.release()
    if answer.get("Status") != 0x0000:
        raise NodeError(f"{peer}: C-ECHO status {answer.get('Status', 'none')}")
    typer.echo(f"{peer} ({target.ae_title} at {target.host}:{target.port}) answers")


@app.command()
def pull(
    peer: PeerName,
    uid: Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")],
    by: Annotated[
        Road | None,
        typer.Option("--by", help="Road; default: web with a dicomweb_url, else get, else move."),
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", min=1.0, max=86400.0, help="Seconds without progress until it is given up.")
    ] = 60.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Fetch a study from a peer of the configuration."""
    from dicom_node import pull_command

    configure_logs(level="ERROR", json=False)
    settings = load_settings(config)
    target, study_uid = settings.peer(peer), _uid(uid)
    with _ledger(settings) as sessions:
        pulled = pull_command.run(settings, sessions, target, study_uid, by, timedelta(seconds=patience))
    if as_json:
        _print_json(pulled.as_json())
    else:
        pull_command.show(pulled)
    pull_command.check(pulled)


@app.command("check-config")
def check_config(config: Config = None) -> None:
    """Say every mistake of the configuration with its key."""
    from dicom_node import objects, syslog, tls
    from dicom_node.web.certificate import check_certificate

    settings = load_settings(config)
    check_all(
        lambda: tls.check(settings, utc_now()),
        lambda: check_certificate(settings.web),
        lambda: syslog.check(settings.audit),
        lambda: objects.try_out(settings.objects),
    )
    typer.echo("the configuration is right")


@app.command()
def conformance(as_json: AsJson = False) -> None:
    """Print the conformance statement: SOP classes, roles and transfer syntaxes as the node negotiates them."""
    from dicom_node.conformance import statement, tables

    if as_json:
        _print_json(tables())
    else:
        typer.echo(statement(), nl=False)


def main() -> None:
    """Run a command; an error is one line on standard error, and never a traceback without --debug."""
    try:
        sys.exit(app(standalone_mode=False))  # which returns the code of a typer.Exit
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(_complain(error))


def _complain(error: Exception) -> int:
    """Print an error as people need it and return the exit code."""
    if hasattr(error, "format_message"):  # click's own: the call is wrong
        print(f"dicom-node: {error.format_message()}; see dicom-node --help", file=sys.stderr)  # noqa: T201
        return 2
    if isinstance(error, NodeError):
        print(f"dicom-node: {error}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, ConfigurationError | UnknownPeer | InvalidUID) else 1
    print(f"dicom-node: {type(error).__name__}: {error}; --debug shows where", file=sys.stderr)  # noqa: T201
    return 1


@contextmanager
def _needs_worker() -> Iterator[None]:
    """Say in words that the packages of the worker are missing: the node itself runs without them."""
    try:
        yield
    except ImportError as error:
        raise NotInstalled(
            f"this needs the worker's packages ({error.name}): pip install 'echo-ai-node[worker]'"
        ) from error


def _failed(sessions: Sessions) -> list[UID]:
    return [UID(one["study_instance_uid"]) for one in studies_json(sessions, StudyState.FAILED)]


def _ring(settings: Settings, study_id: int) -> None:
    """Call a worker; with the embedded broker the node's clock does so within seconds."""
    if settings.broker.url.get_secret_value():
        from dicom_node.dispatch import Bell

        bell = Bell(settings.broker.url.get_secret_value())
        bell.ring(study_id)
        bell.close()


def _uid(text: str) -> UID:
    return parse_uid(text)


@contextmanager
def _ledger(settings: Settings) -> Iterator[Sessions]:
    sessions = open_ledger(settings.database_url)
    try:
        yield sessions
    finally:
        close_ledger(sessions)


def _print_cleaned(cleaned: "Cleaned", *, dry_run: bool) -> None:
    console = Console()
    table = Table("Delivered", "Bytes", "Study or file")
    for study in cleaned.studies:
        name = _with_error(study.study_instance_uid, study.error)
        table.add_row(f"{study.delivered_at:%Y-%m-%d %H:%M}", str(study.num_bytes), name)
    for file in cleaned.files:
        table.add_row("", str(file.num_bytes), _with_error(file.path, file.error))
    if table.row_count:
        console.print(table)
    done = "would be removed" if dry_run else "removed"
    typer.echo(f"{done}: {cleaned.num_bytes} bytes, of {len(cleaned.studies)} studies and {len(cleaned.files)} files")


def _with_error(name: str, error: str) -> str:
    return f"{name}: {error}" if error else name


def _print_json(content: object) -> None:
    typer.echo(json.dumps(content, indent=1))


def _studies_table(found: list[StudyJson]) -> Table:
    table = Table("Study", "State", "Received", "Instances", "Loops", "Results")
    for one in found:
        table.add_row(
            one["study_instance_uid"],
            one["state"] if one["error"] is None else f"{one['state']}: {one['error']}",
            one["received_at"],
            str(one["instances"]),
            f"{one['loops_analysed']} of {one['loops']}",
            _results(one),
        )
    return table


def _results(one: StudyJson) -> str:
    words = [f"{result['task']} {_short(result['value'])}{result['unit']}" for result in one["results"]]
    statement = (one["ensemble"] or {}).get("statement")
    return "\n".join([*words, *([statement] if statement else [])])


def _short(value: object) -> str:
    return f"{value:.1f} " if isinstance(value, float) else str(value)


def _print_study(one: StudyJson) -> None:
    console = Console()
    console.print(_studies_table([one]))
    sections: list[tuple[str, list[dict[str, Any]], Callable[[dict[str, Any]], str]]] = [
        ("Not measured", one["not_measured"], lambda row: f"{row['task']}: {row['reason']}"),
        ("Not analysed", [*map(dict, one["not_analysed"])], lambda row: f"{row['sop_instance_uid']}: {row['reason']}"),
        ("Reports", [*map(dict, one["reports"])], lambda row: str(row["path"])),
        ("Deliveries", [*map(dict, one["deliveries"])], _delivery_line),
        ("History", [*map(dict, one["history"])], lambda row: f"{row['at']} {row['event']} {row['detail']}"),
    ]
    for title, rows, line in sections:
        if rows:
            console.print(f"\n[bold]{title}[/bold]")
            for row in rows:
                console.print(f"  {line(row)}", markup=False, highlight=False)


def _delivery_line(row: dict[str, Any]) -> str:
    error = f": {row['error']}" if row["error"] else ""
    commitment = f", commitment {row['commitment']}" if row["commitment"] else ""
    return f"{row['peer']}: {row['state']} after {row['attempts']} attempts{commitment}{error}"
