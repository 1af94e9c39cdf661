"""The instance store keeps bytes as sent, or nothing at all."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import naming
from dicom_node.errors import OutOfSpace, StoreError
from dicom_node.identity import UID
from dicom_node.store import InstanceStore, Kept
from tests.doubles.steps import watched

STUDY, SOP = UID("1.2.3"), UID("1.2.3.4")


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_holds_the_header_and_the_data_set_as_given(store: InstanceStore) -> None:
    kept = store.keep(STUDY, SOP, b"header", b"data set")

    assert store.path(kept.path).read_bytes() == b"headerdata set"
    assert kept.num_bytes == len(b"data set")
    assert kept.path.startswith(f"instances/{STUDY}/{SOP}-{kept.sha256[:12]}")


def test_files_and_folders_are_for_the_node_alone(store: InstanceStore) -> None:
    path = store.path(store.keep(STUDY, SOP, b"", b"x").path)

    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700


def test_the_same_bytes_land_on_one_file_and_other_bytes_beside_it(store: InstanceStore) -> None:
    first = store.keep(STUDY, SOP, b"", b"one")
    again = store.keep(STUDY, SOP, b"", b"one")
    other = store.keep(STUDY, SOP, b"", b"two")

    assert again == first
    assert {path.name for path in store.path(first.path).parent.iterdir()} == {
        Path(first.path).name,
        Path(other.path).name,
    }


def test_below_the_reserve_nothing_is_written(tmp_path: Path) -> None:
    store = InstanceStore(tmp_path, min_free_bytes=2**60)

    with pytest.raises(OutOfSpace, match="min_free_bytes"):
        store.keep(STUDY, SOP, b"", b"x")

    assert files_below(tmp_path) == []


def test_a_report_may_use_the_reserve(tmp_path: Path) -> None:
    store = InstanceStore(tmp_path, min_free_bytes=2**60)

    path = store.keep_report(SOP, b"a report")

    assert path == f"reports/{SOP}.dcm"
    assert store.path(path).read_bytes() == b"a report"


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, OutOfSpace), (errno.EDQUOT, OutOfSpace), (errno.EROFS, StoreError), (errno.EIO, StoreError)],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failing_disk_leaves_nothing_behind(tmp_path: Path, call: str, number: int, error: type[StoreError]) -> None:
    store = InstanceStore(tmp_path, min_free_bytes=0)

    with (
        mock.patch.object(os, call, side_effect=OSError(number, os.strerror(number))),
        pytest.raises(error) as raised,
    ):
        store.keep(STUDY, SOP, b"", b"x")

    assert type(raised.value) is error
    assert files_below(tmp_path) == []


def test_an_interrupted_write_leaves_only_a_part_file_that_the_sweep_removes(tmp_path: Path) -> None:
    store = InstanceStore(tmp_path, min_free_bytes=0)
    child = os.fork()
    if child == 0:
        with mock.patch.object(os, "fsync", side_effect=lambda _descriptor: os._exit(9)):  # a crash before the fsync
            store.keep(STUDY, SOP, b"header", b"data")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = files_below(tmp_path)

    removed = store.sweep()

    assert [path.suffix for path in left] == [".part"]
    assert removed == [f"incoming/{left[0].name}"]
    assert files_below(tmp_path) == []


def test_what_a_living_process_writes_survives_the_sweep_of_another(tmp_path: Path) -> None:
    """Such as a worker on another machine that shares the folder."""
    store, other = (InstanceStore(tmp_path, min_free_bytes=0) for _ in range(2))
    fsync = os.fsync
    swept: list[list[str]] = []

    def sweep_first(descriptor: int) -> None:
        swept.append(other.sweep())
        fsync(descriptor)

    with mock.patch.object(os, "fsync", side_effect=sweep_first):
        path = store.keep_report(SOP, b"a report")

    assert [one for one in swept if one] == []
    assert store.exists(path)


def test_a_file_that_a_sweep_took_before_it_was_locked_is_made_anew(tmp_path: Path) -> None:
    store, other = (InstanceStore(tmp_path, min_free_bytes=0) for _ in range(2))
    flock = fcntl.flock
    swept: list[str] = []

    def sweep_first(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.append("")
            swept.extend(other.sweep())
        flock(descriptor, how)

    with mock.patch.object(fcntl, "flock", side_effect=sweep_first):
        path = store.keep_report(SOP, b"a report")

    assert len(swept) == 2
    assert store.path(path).read_bytes() == b"a report"


def test_the_names_of_all_folders_survive_a_power_cut(tmp_path: Path) -> None:
    """Each is fsynced in the folder above it, from the first that was made on."""
    fsync = os.fsync
    synced: set[str] = set()

    def remember(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    with mock.patch.object(os, "fsync", side_effect=remember):
        InstanceStore(tmp_path / "srv" / "echo", min_free_bytes=0)

    assert synced >= {str(tmp_path), str(tmp_path / "srv"), str(tmp_path / "srv" / "echo")}


def test_the_name_of_a_study_is_synced_when_its_folder_is_met_and_when_it_was_made_anew(store: InstanceStore) -> None:
    """Another process may have made it a moment ago."""
    instances = store.path("instances")

    met = folders_synced(lambda: store.keep(STUDY, SOP, b"", b"one"))
    known = folders_synced(lambda: store.keep(STUDY, SOP, b"", b"two"))
    store.remove_study(STUDY)
    anew = folders_synced(lambda: store.keep(STUDY, SOP, b"", b"three"))

    assert met == [instances / STUDY, instances]
    assert known == [instances / STUDY]
    assert anew == [instances / STUDY, instances]


def folders_synced(work: Callable[[], object]) -> list[Path]:
    fsync, synced = os.fsync, []

    def remember(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    with mock.patch.object(os, "fsync", side_effect=remember):
        work()
    return [path for path in synced if path.is_dir()]


def test_a_preview_lies_under_the_name_of_its_loop_and_goes_with_it(store: InstanceStore) -> None:
    loop = store.keep(STUDY, SOP, b"", b"one").path
    preview = store.keep_preview(loop, b"seen")

    assert preview == loop.replace("instances", "previews")
    assert store.path(preview).read_bytes() == b"seen"
    assert mode_of(store.path(preview)) == 0o600
    assert store.study_bytes(STUDY) == 7
    store.remove_study(STUDY)
    assert files_below(store.path("")) == []


def test_the_reserve_is_not_spent_on_previews(tmp_path: Path) -> None:
    store = InstanceStore(tmp_path / "full", min_free_bytes=10**18)

    with pytest.raises(OutOfSpace):
        store.keep_preview(f"instances/{STUDY}/{SOP}-0.dcm", b"seen")


def test_bytes_in_quarantine_do_not_multiply(store: InstanceStore, tmp_path: Path) -> None:
    first = store.quarantine(b"header", b"data")
    second = store.quarantine(b"header", b"data")

    assert first == second
    assert store.path(first.path).read_bytes() == b"headerdata"
    assert len(files_below(tmp_path / "data" / "quarantine")) == 1


def test_an_instance_is_kept_in_a_study_folder_that_retention_removed(store: InstanceStore) -> None:
    store.keep(STUDY, SOP, b"", b"one")
    store.remove_study(STUDY)

    kept = store.keep(STUDY, SOP, b"", b"two")

    assert store.exists(kept.path)
    assert store.study_bytes(STUDY) == 3


def test_an_instance_is_kept_when_retention_removes_its_folder_just_before_the_rename(store: InstanceStore) -> None:
    removals = [STUDY]

    def reached(name: str) -> None:
        if name == "rename" and removals:
            store.remove_study(removals.pop())

    with watched(reached):
        kept = store.keep(STUDY, SOP, b"", b"two")

    assert not removals
    assert store.exists(kept.path)


def steps_of(work: Callable[[], object]) -> list[str]:
    steps: list[str] = []
    with watched(steps.append):
        work()
    return steps


def test_a_new_instance_has_its_name_before_the_disk_is_waited_for(store: InstanceStore) -> None:
    """So that what makes its bytes safe makes the name safe too, and the second wait is short."""
    store.keep(STUDY, UID("1.2.7"), b"", b"x")

    steps = steps_of(lambda: store.keep(STUDY, SOP, b"", b"x", is_new=True))

    assert steps == ["write", "link", "unlink", "fsync", "fsync"]


def test_a_name_is_never_taken_from_a_file_that_is_safe_for_one_that_is_not(store: InstanceStore) -> None:
    """Two associations send the same instance: the one has had its answer when the other comes to the name."""
    first = store.keep(STUDY, SOP, b"", b"x", is_new=True)
    kept: list[Kept] = []

    steps = steps_of(lambda: kept.append(store.keep(STUDY, SOP, b"", b"x", is_new=True)))

    assert steps == ["write", "link", "fsync", "rename", "fsync"]
    assert kept == [first]
    assert (store.holds(first), store.holds(kept[0])) == (False, True)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links_keeps_a_new_instance_as_any_other(store: InstanceStore, number: int) -> None:
    with mock.patch.object(os, "link", side_effect=OSError(number, os.strerror(number))):
        kept = store.keep(STUDY, SOP, b"header", b"x", is_new=True)

    assert store.path(kept.path).read_bytes() == b"headerx"
    assert files_below(store.path("incoming")) == []


def test_a_disk_that_fails_at_the_name_leaves_nothing_behind(store: InstanceStore) -> None:
    with (
        mock.patch.object(os, "link", side_effect=OSError(errno.ENOSPC, "full")),
        pytest.raises(OutOfSpace),
    ):
        store.keep(STUDY, SOP, b"", b"x", is_new=True)

    assert files_below(store.path("")) == []


def test_a_new_instance_whose_name_and_folder_a_sweep_takes_is_told_to_have_none(store: InstanceStore) -> None:
    """The intake looks under the lock whether it has it still, and keeps it anew."""
    give = naming.give_new_name

    def taken_away(part: Path, target: Path) -> bool:
        is_named = give(part, target)
        store.remove(str(target.relative_to(store.path(""))))
        return is_named

    with mock.patch("dicom_node.store.give_new_name", taken_away):
        kept = store.keep(STUDY, SOP, b"", b"x", is_new=True)

    assert not store.path(kept.path).parent.exists()
    assert not store.holds(kept)


def test_a_new_instance_is_kept_when_retention_removes_its_folder_just_before_the_name(store: InstanceStore) -> None:
    removals = [STUDY]
    store.keep(STUDY, UID("1.2.7"), b"", b"x")

    def reached(name: str) -> None:
        if name == "link" and removals:
            store.remove_study(removals.pop())

    with watched(reached):
        kept = store.keep(STUDY, SOP, b"", b"two", is_new=True)

    assert not removals
    assert store.holds(kept)


@given(header=st.binary(max_size=300), dataset=st.binary(max_size=3000))
def test_any_bytes_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, dataset: bytes
) -> None:
    store = InstanceStore(tmp_path_factory.getbasetemp() / "any", min_free_bytes=0)

    kept = store.keep(STUDY, SOP, header, dataset)

    assert store.path(kept.path).read_bytes() == header + dataset
