"""The instance store keeps bytes as sent, or nothing at all."""

import errno
import os
import stat
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import OutOfSpace, StoreError
from dicom_node.identity import UID
from dicom_node.store import InstanceStore

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
    assert removed == 1
    assert files_below(tmp_path) == []


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


@given(header=st.binary(max_size=300), dataset=st.binary(max_size=3000))
def test_any_bytes_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, dataset: bytes
) -> None:
    store = InstanceStore(tmp_path_factory.getbasetemp() / "any", min_free_bytes=0)

    kept = store.keep(STUDY, SOP, header, dataset)

    assert store.path(kept.path).read_bytes() == header + dataset
