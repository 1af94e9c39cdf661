"""Several receiving processes on one port, as `serve` starts them; dcmtk as a real peer."""

import multiprocessing
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.filewriter import dcmwrite
from sqlalchemy import select

from dicom_node.acceptor import listen, run_acceptor
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.schema import Instance
from dicom_node.settings import Settings, settings_from
from tests.binaries import free_port, require_binary
from tests.doubles.datasets import encoded, loop
from tests.doubles.wire_peer import (
    DEADLINE,
    DEFLATED,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    JPEG_BASELINE,
    VERIFICATION,
    WirePeer,
)
from tests.patience import eventually

SPAWN = multiprocessing.get_context("spawn")
ECHO = (VERIFICATION, (IMPLICIT_LITTLE,))
START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Acceptors:
    """Two running receiving processes."""

    port: int
    listening: socket.socket
    processes: list[SpawnProcess]
    settings: Settings

    def instances(self) -> list[Path]:
        """Return the files of the instances in the ledger."""
        sessions = open_ledger(self.settings.database_url)
        with sessions() as session:
            paths = list(session.scalars(select(Instance.path).order_by(Instance.sop_instance_uid)))
        close_ledger(sessions)
        return [self.settings.node.data_dir / path for path in paths]


@pytest.fixture
def acceptors(tmp_path: Path) -> Iterator[Acceptors]:
    """Two processes on one port, which both answer; nobody hears their bell."""
    settings = settings_from(
        {
            "node": {"data_dir": str(tmp_path), "min_free_bytes": 0, "max_associations": 3},
            "broker": {"url": f"redis://127.0.0.1:{free_port()}/0"},
        }
    )
    close_ledger(open_ledger(settings.database_url))
    with listen("127.0.0.1", 0) as listening:
        processes = [SPAWN.Process(target=run_acceptor, args=(listening, settings)) for _ in range(2)]
        for process in processes:
            process.start()
        port = int(listening.getsockname()[1])
        try:
            for other in reversed(processes):
                with _stopped(other):
                    assert eventually(lambda: _echoes(port), START_SECONDS)
            yield Acceptors(port=port, listening=listening, processes=processes, settings=settings)
        finally:
            for process in processes:
                process.kill()
                process.join(DEADLINE)


def test_each_process_receives_on_the_one_port_while_the_other_cannot(acceptors: Acceptors) -> None:
    """A busy one keeps nobody waiting."""
    for number, process in enumerate(acceptors.processes):
        with _stopped(process), WirePeer(acceptors.port) as peer:
            peer.associate()
            assert peer.store(encoded(loop(f"1.2.3.{number}")), sop_instance=f"1.2.3.{number}").status == 0x0000

    assert len(acceptors.instances()) == 2


def test_the_limit_of_associations_is_that_of_all_processes(acceptors: Acceptors) -> None:
    """However they are spread; a killed process gives its seats back."""
    with ExitStack() as stack:
        peers = [stack.enter_context(WirePeer(acceptors.port)) for _ in range(5)]

        answers = [peer.associate(ECHO).rejection for peer in peers]

        assert answers == [None, None, None, (2, 3, 2), (2, 3, 2)]
        for process in acceptors.processes[:1]:
            process.kill()
        for peer in peers:
            peer.socket.close()
        assert eventually(lambda: _echoes(acceptors.port))


def test_an_association_ends_in_good_order_after_sigterm_and_then_the_process(acceptors: Acceptors) -> None:
    """What a cart is sending is kept; nothing new is accepted."""
    with WirePeer(acceptors.port) as peer:
        peer.associate()
        message = peer.store_message(encoded(loop()))
        peer.socket.sendall(message[:-20])
        for process in acceptors.processes:
            process.terminate()
        acceptors.listening.close()
        assert eventually(lambda: not _connects(acceptors.port))

        peer.socket.sendall(message[-20:])
        status = peer.response().status
        peer.release()

    assert status == 0x0000
    for process in acceptors.processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in acceptors.processes] == [0, 0]
    assert len(acceptors.instances()) == 1


def test_connections_that_say_nothing_do_not_delay_the_end(acceptors: Acceptors) -> None:
    """They are cut off at once."""
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(socket.create_connection(("127.0.0.1", acceptors.port)))
        began = time.monotonic()
        for process in acceptors.processes:
            process.terminate()
        for process in acceptors.processes:
            process.join(DEADLINE)

    assert [process.exitcode for process in acceptors.processes] == [0, 0]
    assert time.monotonic() - began < 9  # less than the time-out of a request


@pytest.mark.parametrize(
    ("proposal", "syntax"),
    [
        ("--propose-little", EXPLICIT_LITTLE),
        ("--propose-implicit", IMPLICIT_LITTLE),
        ("--propose-jpeg8", JPEG_BASELINE),
        ("--propose-deflated", DEFLATED),
    ],
)
def test_dcmtk_sends_a_study(acceptors: Acceptors, tmp_path: Path, proposal: str, syntax: str) -> None:
    """A real peer, which shares no code with ours, in several transfer syntaxes."""
    storescu = require_binary("storescu")
    folder = tmp_path / "study"
    folder.mkdir()
    sent = [_file(folder, f"1.2.3.{number}", syntax) for number in range(5)]

    run = subprocess.run(
        [storescu, "-aec", "ECHONODE", "-aet", "CART", proposal, "+sd", "127.0.0.1", str(acceptors.port), str(folder)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    kept = [dcmread(path) for path in acceptors.instances()]
    assert [dataset.file_meta.TransferSyntaxUID for dataset in kept] == [syntax] * 5
    assert [_content(dataset) for dataset in kept] == [_content(dataset) for dataset in sent]


def test_dcmtk_is_told_who_the_node_is_not(acceptors: Acceptors) -> None:
    """echoscu names the reason of a rejection."""
    echoscu = require_binary("echoscu")

    ours, other = (
        subprocess.run(
            [echoscu, "-aec", title, "127.0.0.1", str(acceptors.port)],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        for title in ("ECHONODE", "OTHER")
    )

    assert ours.returncode == 0
    assert other.returncode != 0
    assert "Called AE Title Not Recognized" in other.stderr + other.stdout


class _stopped:
    """A process that does nothing until the block ends."""

    def __init__(self, process: SpawnProcess) -> None:
        assert process.pid is not None
        self._pid = process.pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        assert eventually(lambda: _states(self._pid) == {"T"})  # until then it may still accept

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


def _states(pid: int) -> set[str]:
    tasks = Path(f"/proc/{pid}/task").glob("*/stat")
    return {task.read_text().rpartition(")")[2].split()[0] for task in tasks}


def _file(folder: Path, sop_instance: str, syntax: str) -> Dataset:
    dataset = loop(sop_instance)
    if syntax == JPEG_BASELINE:
        encoded(dataset, syntax, (b"\xff\xd8 no picture \xff\xd9",))
    else:
        encoded(dataset, syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path = folder / f"{sop_instance}.dcm"
    dcmwrite(path, dataset, enforce_file_format=True)
    return dcmread(path)


def _content(dataset: Dataset) -> str:
    """Return all elements as text; dcmtk writes lengths of its own."""
    return str(Dataset({element.tag: element for element in dataset}))


def _echoes(port: int) -> bool:
    try:
        with WirePeer(port) as peer:
            if peer.associate(ECHO).syntaxes != {1: IMPLICIT_LITTLE}:
                return False
            status = peer.echo()
            peer.release()
            return status == 0x0000
    except OSError:
        return False


def _connects(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE):
            return True
    except OSError:
        return False
