"""Names in folders that others remove while they are empty."""

from pathlib import Path
from unittest import mock

import pytest

from dicom_node.naming import Names, in_folder


def test_a_folder_that_a_sweep_removes_before_it_has_a_name_in_it_is_made_again(tmp_path: Path) -> None:
    """Twice, even; a C-STORE is not refused for that."""
    folder, num_removed = tmp_path / "1.2.3", 0

    def give() -> None:
        nonlocal num_removed
        if folder.exists() and num_removed < 2:
            folder.rmdir()
            num_removed += 1
        (folder / "instance").touch()

    in_folder(folder, give)

    assert num_removed == 2
    assert (folder / "instance").exists()


def test_what_is_missing_for_another_reason_is_said(tmp_path: Path) -> None:
    """No folder brings back the file that was to be named."""
    part = tmp_path / "gone.part"

    with pytest.raises(FileNotFoundError):
        in_folder(tmp_path / "1.2.3", lambda: part.rename(tmp_path / "1.2.3" / "instance"))


def test_a_folder_that_is_gone_is_said_and_does_not_keep_the_others_from_the_disk(tmp_path: Path) -> None:
    """Threads share a sync: what failed for one must have been done for the rest."""
    gone, there = tmp_path / "gone", tmp_path / "there"
    there.mkdir()
    synced: list[Path] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    with mock.patch("dicom_node.naming.os.fsync", fsync), pytest.raises(FileNotFoundError):
        Names().sync([gone, there])

    assert synced == [there, tmp_path]
