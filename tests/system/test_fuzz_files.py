"""Damaged loops on the whole path: C-STORE, ledger, claim, decoder, network, report; good loops are beside them.

A part of them by default; ECHO_NODE_FUZZ=full sends 5,000. A file is a function of its number: what is wrong with
number 1234 is seen again by ECHO_NODE_FUZZ=1234, alone. The real files have their share where the folder of them lies.
"""

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from dicom_node import completion
from dicom_node.clock import utc_now
from dicom_node.identity import UID
from dicom_node.intake import Intake
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.schema import Instance, Result, Study
from dicom_node.ledger.views import study_json
from dicom_node.logs import configure_logs
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore
from model.clip.spec import ClipSpec
from tests.doubles.file_fuzz import instance, sources
from tests.doubles.receiver import Receiver, running_receiver
from tests.doubles.tiny import ALL_VIEWS, make_ensemble
from tests.doubles.wire_peer import WirePeer
from worker.analyse import Analyst
from worker.engine import load_engine
from worker.settings import Limits

FUZZ = os.environ.get("ECHO_NODE_FUZZ", "")
FULL, SHARE, OF_A_STUDY = 5_000, 200, 50
SEEDS = range(FULL) if FUZZ == "full" else range(int(FUZZ), int(FUZZ) + 1) if FUZZ.isdecimal() else range(SHARE)
GOOD = ("jpeg", "explicit")
SECTOR_BEATS = ClipSpec(num_frames=4, size=32, crop="sector", depth_mm=140.0, sampling="beat")
"""The recipe whose road through the reader is longest."""
"""Loops that are in each study as they are."""
PICTURES_EVERY = 20
"""Of so many studies one has its pictures drawn."""
DEADLINE = 600.0
MAX_PRIVATE = 1_500_000_000
"""Bytes of the worker that are its own; the libraries of PyTorch, mapped from their files, are another 0.5 GB."""
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A receiving server in this process, and a worker in one of its own."""

    receiver: Receiver
    sessions: Sessions
    loops: dict[str, Path]
    worker: SpawnProcess
    line: Connection

    def drain(self, study_id: int, *, has_pictures: bool) -> int:
        """Let the worker drain a study; return the most bytes that it ever had in memory."""
        self.line.send((study_id, has_pictures))
        assert self.line.poll(DEADLINE), "the worker does not answer"
        answer = self.line.recv()
        assert isinstance(answer, int), answer
        return answer


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose ledger is empty."""
    (tmp_path / "loops").mkdir()
    loops = sources(tmp_path / "loops", REAL if REAL.is_dir() else None)
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    sessions = open_ledger(url)
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    ensemble = make_ensemble(tmp_path / "ensemble", [ALL_VIEWS], clip=SECTOR_BEATS, view_threshold=0.01)
    worker = spawn.Process(target=_work, args=(theirs, url, tmp_path / "data", ensemble, tmp_path / "worker.log"))
    worker.start()
    theirs.close()
    store = InstanceStore(tmp_path / "data", min_free_bytes=0)
    intake = Intake(sessions, store, utc_now, lambda _study: None)
    with running_receiver(tmp_path / "data", intake.receive) as receiver:
        try:
            yield Node(receiver=receiver, sessions=sessions, loops=loops, worker=worker, line=ours)
        finally:
            worker.kill()
            worker.join()
            close_ledger(sessions)


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_file_harms_the_worker_or_a_number_of_its_neighbours(node: Node) -> None:
    statuses: Counter[str] = Counter()
    states: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    began = time.monotonic()
    alone = _good_study(node)
    peak, slowest = 0, (0.0, "")
    for start in range(SEEDS.start, SEEDS.stop, OF_A_STUDY):
        seeds = range(start, min(start + OF_A_STUDY, SEEDS.stop))
        study = f"1.2.826.0.1.8.{start + 1}"
        sent = _send(node, study, seeds, statuses)
        completion.tick(node.sessions, lambda: utc_now() + timedelta(minutes=1), timedelta(seconds=30))
        study_id = _id(node.sessions, study)
        before = time.monotonic()
        try:
            private = node.drain(study_id, has_pictures=start // OF_A_STUDY % PICTURES_EVERY == 0)
        except (EOFError, AssertionError) as error:
            node.worker.join(1)
            raise AssertionError(
                f"seeds {seeds}: the worker ended with {node.worker.exitcode}: {error}; "
                f"it held {_open(node.sessions, study_id, sent)}"
            ) from error
        slowest = max(slowest, (time.monotonic() - before, study))
        peak = max(peak, private)
        assert peak < MAX_PRIVATE, f"seeds {seeds}: {peak} bytes"
        shown = study_json(node.sessions, UID(study))
        states[shown["state"]] += 1
        assert shown["state"] in ("delivering", "failed"), f"seeds {seeds}: {shown['state']}"
        assert (len(shown["reports"]), bool(shown["error"])) == (
            (1, False) if shown["state"] == "delivering" else (0, True)
        )
        assert _outputs(node.sessions, study, len(seeds)) == alone, f"seeds {seeds}: the good loops' numbers changed"
        verdicts += _verdicts(node.sessions, study_id)
    seconds = time.monotonic() - began

    assert _good_study(node, 2) == alone
    assert states["delivering"] >= 0.9 * states.total()
    print(
        f"{len(SEEDS)} files in {seconds:.0f} s, the worker at most {peak / 1e6:.0f} MB; slowest study {slowest}; "
        f"answers {dict(statuses.most_common())}, studies {dict(states)}, instances {dict(verdicts.most_common())}",
        file=sys.__stdout__,
    )


def _good_study(node: Node, number: int = 1) -> list[object]:
    """Return the numbers of the good loops of a study that holds no others."""
    study = f"1.2.826.0.1.9.{number}"
    _send(node, study, range(0), Counter())
    completion.tick(node.sessions, lambda: utc_now() + timedelta(minutes=1), timedelta(seconds=30))
    node.drain(_id(node.sessions, study), has_pictures=True)
    outputs = _outputs(node.sessions, study, 0)
    assert len(outputs) == len(GOOD)
    assert study_json(node.sessions, UID(study))["state"] == "delivering"
    return outputs


def _send(node: Node, study: str, seeds: range, statuses: Counter[str]) -> dict[str, str]:
    """Send damaged loops, then good ones, an association each; return what each of the damaged is."""
    names = list(node.loops)
    sent = [instance(node.loops[names[seed % len(names)]], study, place + 1, seed) for place, seed in enumerate(seeds)]
    good = [instance(node.loops[name], study, len(seeds) + place + 1, None) for place, name in enumerate(GOOD)]
    for one in [*sent, *good]:
        with WirePeer(node.receiver.port) as peer:
            peer.associate((one.sop_class, (one.syntax,)))
            status = peer.store(one.content, one.sop_instance, one.sop_class).status
        statuses[f"0x{status:04X}"] += one in sent
        assert status in (0x0000, 0xA900, 0xC000, 0xC001, 0xC010), one.name
        assert status == 0 or one in sent
    return {one.sop_instance: one.name for one in sent}


def _id(sessions: Sessions, study: str) -> int:
    with sessions() as session:
        return session.scalars(select(Study.id).where(Study.study_instance_uid == study)).one()


def _outputs(sessions: Sessions, study: str, num_others: int) -> list[object]:
    """Return what the networks said of the good loops, to the last bit."""
    uids = [f"{study}.1.{num_others + place + 1}" for place in range(len(GOOD))]
    wanted = (
        select(Result.outputs)
        .join(Instance, Instance.id == Result.instance_id)
        .where(Instance.sop_instance_uid.in_(uids))
        .order_by(Instance.id)
    )
    with sessions() as session:
        return [{**outputs, "attention": None} for outputs in session.scalars(wanted)]


def _verdicts(sessions: Sessions, study_id: int) -> Counter[str]:
    rows = select(Instance.state, Instance.reason_code).where(Instance.study_id == study_id)
    with sessions() as session:
        return Counter(reason or state for state, reason in session.execute(rows))


def _open(sessions: Sessions, study_id: int, names: dict[str, str]) -> list[str]:
    """Return what the worker held."""
    rows = select(Instance.sop_instance_uid).where(Instance.study_id == study_id, Instance.state == "leased")
    with sessions() as session:
        return [f"{uid}: {names.get(uid, 'good')}" for uid in session.scalars(rows)]


def _work(line: Connection, url: str, data: Path, ensemble: Path, log: Path) -> None:
    """Be a worker that drains the studies that it is told, and says how much memory it ever had."""
    with ExitStack() as files, log.open("w") as stream:
        os.dup2(stream.fileno(), 2)
        configure_logs(stream=stream)
        torch.set_num_threads(1)
        sessions = open_ledger(url)
        files.callback(partial(close_ledger, sessions))
        engine = load_engine(ensemble, device="cpu", precision="fp32")
        while True:
            study_id, has_pictures = line.recv()
            report = ReportSection() if has_pictures else ReportSection().without_pictures
            analyst = Analyst(
                current_engine=lambda: engine,
                sessions=sessions,
                store=InstanceStore(data, min_free_bytes=0),
                destinations=("pacs",),
                report=report,
                limits=Limits(budget=timedelta(hours=1)),
                ring=lambda _study: None,
                owner="fuzz",
                draft_after=timedelta(hours=1),
            )
            analyst.drain(study_id)
            line.send(_most_private())


def _most_private() -> int:
    """Return the most bytes of its own that this process ever had in memory."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {fields[0]: int(fields[1]) * 1024 for fields in lines if fields[0] in ("VmHWM:", "RssFile:")}
    return sizes["VmHWM:"] - sizes["RssFile:"]
