"""The promise of the node, counted: what was answered 0x0000 ends in a delivered report, or a person is told why.

Hundreds of studies while everything goes wrong at random. `ECHO_NODE_CHAOS=2000` plays so many (half an hour), and
`ECHO_NODE_CHAOS_SEED` another day; the seed decides what is sent, what is answered and what breaks in which order.
"""

import gc
import io
import os
import random
import socket
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import _config
from sqlalchemy import select, update

from dicom_node.clock import utc_now
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.schema import Delivery, DeliveryState, Instance, Report, Study, StudyState
from dicom_node.orphans import missing, orphans, sweep
from dicom_node.store import InstanceStore, dataset_digest
from model.tasks import View
from tests.doubles.datasets import data_part
from tests.doubles.tiny import make_ensemble
from tests.system.chaos import Acknowledged, Cart, Faults, Pacs, own_disk
from tests.system.nodes import DEADLINE, WITHOUT_PICTURES, Node, configured, start, stop, wait_until
from tests.system.studies import phantom_study
from tests.system.validators import evidence, referenced
from worker.phantom_study import Shot

NUM_STUDIES = int(os.environ.get("ECHO_NODE_CHAOS", "200"))
SEED = int(os.environ.get("ECHO_NODE_CHAOS_SEED", "1"))
NUM_CARTS = 4
NUM_FAULTS = 10 + NUM_STUDIES // 8

pytestmark = [
    pytest.mark.timeout(1200 + 5 * NUM_STUDIES),
    # pynetdicom leaves sockets open on which both sides gave up: of the carts and the PACS, which run in this process.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

SHOTS = (
    Shot(view=View.A4C, num_frames=24),
    Shot(view=View.PLAX, num_frames=24),
    Shot(view=View.A4C, num_frames=24, has_colour=True),
    Shot(view=View.PLAX, num_frames=1),
)
OPEN = (StudyState.RECEIVING, StudyState.ANALYSING, StudyState.REPORTING, StudyState.DELIVERING)


def test_what_was_promised_is_delivered_whatever_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)  # the carts send files as they are
    ensemble = make_ensemble(tmp_path / "ensemble")
    sockets = open_sockets()
    pacs = Pacs(SEED)
    pacs.start()
    node = configured(
        tmp_path / "node",
        pacs_port=pacs.port,
        pacs_ae="PACS",
        quiet=1.0,
        extra=f'[ensemble]\npath = "{ensemble}"\n{WITHOUT_PICTURES}',
    )
    with own_disk(node.folder / "var", (NUM_STUDIES * 4 << 20) + (256 << 20)) as has_own_disk:
        process = start(node)
        faults = Faults(
            node=node, pacs=pacs, rng=random.Random(f"{SEED}/faults"), has_own_disk=has_own_disk, process=process
        )
        try:
            promised = play(node, faults, tmp_path)
            pacs.is_moody = False
            outcome = wait_for_the_end(node)
            failed = {uid: error for uid, error in outcome.items() if error is not None}
            retry(node, failed)
            after = wait_for_the_end(node)
            stop(node, faults.process)
        finally:
            if faults.process.poll() is None:
                faults.process.kill()
        pacs.stop()
        close_sockets(sockets)

        print(f"seed {SEED}: {len(outcome)} studies, {len(promised)} instances promised, {len(failed)} failed first,",
              f"{len(faults.played)} faults {dict(Counter(faults.played))}")  # fmt: skip
        sessions = open_ledger(node.database_url)
        assert all(failed.values()), "a study failed without a reason"
        assert {uid for uid, error in after.items() if error is not None} == set()
        assert_kept(promised, sessions, node.folder / "var")
        assert_reported(promised, sessions, pacs)
        assert_clean(sessions, InstanceStore(node.folder / "var", min_free_bytes=0))
        close_ledger(sessions)
    assert len(outcome) == NUM_STUDIES


def open_sockets() -> list[socket.socket]:
    """Return the sockets of this process."""
    gc.collect()
    return [one for one in gc.get_objects() if issubclass(type(one), socket.socket) and one.fileno() >= 0]


def close_sockets(before: list[socket.socket]) -> None:
    """Close what pynetdicom left open where both sides gave up: else the session ends with a warning for each."""
    for one in open_sockets():
        if not any(one is other for other in before):
            one.close()


def play(node: Node, faults: Faults, folder: Path) -> list[Acknowledged]:
    """Let the carts send while faults are played; return what they were promised."""
    (folder / "cart").mkdir()
    carts = [
        Cart(node=node, rng=random.Random(f"{SEED}/{number}"), folder=folder / "cart", templates=templates(number))
        for number in range(NUM_CARTS)
    ]
    wrong: list[BaseException] = []

    def guarded(act: object, *arguments: object) -> None:
        try:
            act(*arguments)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001  # a test must not pass because its thread ended
            wrong.append(error)

    is_over = threading.Event()
    breaking = threading.Thread(target=guarded, args=(faults.play, is_over))
    sending = [threading.Thread(target=guarded, args=(cart.send_studies, NUM_STUDIES // NUM_CARTS)) for cart in carts]
    for thread in (breaking, *sending):
        thread.start()
    try:
        for thread in sending:
            thread.join()
        # The workers are still busy with what was sent.
        deadline = DEADLINE + 20 * NUM_FAULTS
        wait_until(lambda: len(faults.played) >= NUM_FAULTS or wrong or None, "every fault was played", node, deadline)
    finally:
        is_over.set()
        breaking.join()  # else it would start the node again
    assert wrong == []
    return [one for cart in carts for one in cart.acknowledged]


def templates(number: int) -> list[Dataset]:
    """Return what a cart makes its instances of."""
    return phantom_study(seed=number, shots=SHOTS)


def wait_for_the_end(node: Node) -> dict[str, str | None]:
    """Let time pass until no study is on its way any more; return each with the reason of its failure."""
    sessions = open_ledger(node.database_url)

    def ended() -> dict[str, str | None] | None:
        now = utc_now()
        with sessions.begin() as session:  # nobody waits a quarter of an hour here
            waiting = update(Delivery).where(Delivery.state == DeliveryState.WAITING)
            session.execute(waiting.values(next_attempt_at=now))
            # Nor two minutes for the lease of a deliverer that was killed: none takes ten seconds to send here.
            sent_long_ago = Delivery.lease_until < now + timedelta(seconds=110)
            sending = update(Delivery).where(Delivery.state == DeliveryState.SENDING, sent_long_ago)
            session.execute(sending.values(lease_until=now))
            rows = session.execute(select(Study.study_instance_uid, Study.state, Study.error)).all()
        if any(state in OPEN for _, state, _ in rows):
            return None
        return {uid: (error or "") if state == StudyState.FAILED else None for uid, state, error in rows}

    try:
        return wait_until(ended, "no study is on its way", node, deadline=300 + NUM_STUDIES)
    finally:
        close_ledger(sessions)


def retry(node: Node, failed: Sequence[str] | dict[str, str]) -> None:
    """Do what a person does with failed studies."""
    for uid in failed:
        command = [sys.executable, "-m", "dicom_node", "retry", uid, "--config", str(node.config)]
        subprocess.run(command, check=True, capture_output=True)


def assert_kept(promised: Sequence[Acknowledged], sessions: Sessions, data_dir: Path) -> None:
    """Everything that was promised is in the ledger, and on the disk to the byte; what was delivered may have made room
    when the disk was full.
    """
    with sessions() as session:
        rows = session.execute(
            select(Study.study_instance_uid, Instance.sop_instance_uid, Instance.sha256, Instance.path).join(
                Study, Study.id == Instance.study_id
            )
        ).all()
        purged = set(session.scalars(select(Study.study_instance_uid).where(Study.purged_at.is_not(None))))
        owed = select(Study.study_instance_uid).where(Study.purged_at.is_not(None), Study.state != StudyState.DELIVERED)
        assert session.scalars(owed).all() == []
    known = {(study, sop, sha): path for study, sop, sha, path in rows}
    lost = [one for one in promised if (one.study_uid, one.sop_uid, one.sha256) not in known]
    assert lost == []
    for one in promised:
        if one.study_uid not in purged:
            content = (data_dir / known[one.study_uid, one.sop_uid, one.sha256]).read_bytes()
            assert dataset_digest(data_part(content)) == one.sha256
    assert len(purged) < NUM_STUDIES // 10, "too little is left to look at"


def assert_reported(promised: Sequence[Acknowledged], sessions: Sessions, pacs: Pacs) -> None:
    """The PACS has one report a revision, each always the same, and the last names every instance of its study."""
    with sessions() as session:
        reports = session.execute(
            select(Study.study_instance_uid, Report.sop_instance_uid, Report.revision)
            .join(Study, Study.id == Report.study_id)
            .order_by(Report.revision)
        ).all()
    last = {study: sop for study, sop, _ in reports}
    changed = [uid for uid, copies in pacs.kept.items() if len(set(copies)) > 1]
    assert changed == []
    revisions = Counter((study, revision) for study, _, revision in reports)
    assert max(revisions.values()) == 1
    instances: dict[str, set[str]] = defaultdict(set)
    for one in promised:
        instances[one.study_uid].add(one.sop_uid)
    assert instances.keys() == last.keys()
    for study, report in last.items():
        assert report in pacs.kept, f"{study}: its last report is not in the PACS"
        document = dcmread(io.BytesIO(pacs.kept[report][-1]), force=True)
        assert instances[study] <= evidence(document) | referenced(document)


def assert_clean(sessions: Sessions, store: InstanceStore) -> None:
    """No file without a row, once the node has swept, and no row without its file."""
    sweep(sessions, store, older_than=timedelta(0))
    assert list(orphans(sessions, store, older_than=timedelta(0))) == []
    assert list(missing(sessions, store)) == []
