"""From a data set to its store: the same bytes however it was made, and one line for everything that is wrong."""

import csv
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.clip.spec import ClipSpec
from tests import warm
from tests.trainer.data.conftest import Layouts
from trainer.data import prepare as module
from trainer.data.manifest import Pixels
from trainer.data.origin import Origin
from trainer.data.prepare import SKIPPED, prepare
from trainer.data.split import divide, draw_side
from trainer.data.store import ClipStore
from trainer.errors import DataError, UsageError

SPEC = ClipSpec(size=48)
ROOT = Path(__file__).parents[3]


def content(folder: Path) -> dict[str, str]:
    """Return the digest of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARD_SAMPLES", 5)


@pytest.mark.usefixtures("small_shards")
def test_the_number_of_processes_changes_nothing(phantoms: Layouts, tmp_path: Path) -> None:
    for jobs in (1, 2):
        prepare("echonet", phantoms("echonet"), tmp_path / str(jobs), clip=SPEC, pixels="raw", jobs=jobs)

    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert set(content(tmp_path / "1")) == {
        "store.json", "samples.jsonl", "skipped.csv", *(f"shards/0000{number}.bin" for number in range(3))
    }  # fmt: skip


def test_a_killed_preparation_goes_on_to_the_same_bytes(phantoms: Layouts, tmp_path: Path) -> None:
    """Killed with SIGKILL again and again, each time later, until one call gets to the end."""
    root = phantoms("mimic")
    (tmp_path / "config.toml").write_text("[clip]\nsize = 48\n[net]\nsize = 48\n")

    def command(out: str) -> list[str]:
        return ["-c", _WITH_SMALL_SHARDS, "prepare", "mimic", str(root), "--out", str(tmp_path / out),
                "--config", str(tmp_path / "config.toml"), "--format", "raw", "--jobs", "2"]  # fmt: skip

    # Started cold, with another seed of its hashes than the killed ones have.
    subprocess.run([sys.executable, *command("whole")], cwd=ROOT, check=True, capture_output=True)
    kills = 0
    seen: set[int] = set()
    while True:
        process = warm.start(*command("killed"), cwd=ROOT)
        before = len(list((tmp_path / "killed").glob("shards/*.json")))
        while process.exitcode is None:
            if len(list((tmp_path / "killed").glob("shards/*.json"))) > before + 1 and kills < 2:
                process.kill()
                kills += 1
                break
            time.sleep(0.002)
        process.join()
        seen.add(before)
        if (tmp_path / "killed" / "store.json").exists():
            break

    assert kills >= 2
    assert max(seen) > 0  # a later call found shards of an earlier one
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


_WITH_SMALL_SHARDS = """
from trainer.data import prepare
from trainer.cli import main
if __name__ == "__main__":
    prepare._SHARD_SAMPLES = 3
    main()
"""


@pytest.mark.usefixtures("small_shards")
def test_a_store_that_is_whole_is_not_made_again(phantoms: Layouts, tmp_path: Path) -> None:
    first = prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}

    assert prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before


@pytest.mark.parametrize("pixels", ["jpeg", "avi"])
def test_other_forms_show_nearly_the_same(phantoms: Layouts, tmp_path: Path, pixels: Pixels) -> None:
    for form in ("raw", pixels):
        prepare("echonet", phantoms("echonet"), tmp_path / form, clip=SPEC, pixels=form, jobs=1)
    raw, other = (ClipStore.open(tmp_path / form) for form in ("raw", pixels))

    for one, two in zip(raw.samples, other.samples, strict=True):
        assert (one.key, one.indices, one.targets) == (two.key, two.indices, two.targets)
        difference = np.abs(raw.read(one).astype(int) - other.read(two).astype(int))
        assert difference.mean() < 4
        assert other.read(two).shape == (16, 3, 48, 48)


def test_a_video_store_holds_stacks_and_stills_too(phantoms: Layouts, tmp_path: Path) -> None:
    for form in ("raw", "avi"):
        prepare("tmed", phantoms("tmed"), tmp_path / form, clip=SPEC, pixels=form, jobs=1)  # type: ignore[arg-type]
    raw, video = (ClipStore.open(tmp_path / form) for form in ("raw", "avi"))

    for one, two in zip(raw.samples, video.samples, strict=True):
        assert np.abs(raw.read(one).astype(int) - video.read(two).astype(int)).mean() < 5


@pytest.mark.parametrize("layout", ["mimic", "camus"])
def test_every_layout_fills_a_store_of_phantoms(phantoms: Layouts, tmp_path: Path, layout: str) -> None:
    info = prepare(layout, phantoms(layout), tmp_path / "store", clip=SPEC, pixels="jpeg", jobs=1)

    assert info.is_phantom
    assert info.counts["kept"] == len(ClipStore.open(tmp_path / "store").samples)
    assert (
        info.counts["files"]
        == sum(number for name, number in info.counts.items() if name.startswith("skipped")) + (info.counts["kept"])
    )


def break_videos(root: Path, number: int) -> list[str]:
    """Damage so many videos; return their paths below the root."""
    broken = sorted((root / "Videos").iterdir())[:number]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    return [path.relative_to(root).as_posix() for path in broken]


def test_a_bad_file_is_listed_and_left_out(phantoms: Layouts, tmp_path: Path) -> None:
    root = shutil.copytree(phantoms("echonet"), tmp_path / "echonet")
    (broken,) = break_videos(root, 1)

    info = prepare("echonet", root, tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)

    assert info.counts == {"files": 12, "kept": 11, "loops": 11, "skipped, unreadable": 1}
    with (tmp_path / "store" / SKIPPED).open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["path"] == broken
    assert row["reason"].startswith("unreadable: ")


def test_too_many_bad_files_stop_it_and_a_larger_bound_goes_on(phantoms: Layouts, tmp_path: Path) -> None:
    root = shutil.copytree(phantoms("echonet"), tmp_path / "echonet")
    broken = break_videos(root, 4)

    with pytest.raises(DataError, match=r"4 of 12 files are unusable, more than --max-unreadable 0\.05") as caught:
        prepare("echonet", root, tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)

    assert broken[0] in str(caught.value)
    assert str(tmp_path / "store" / SKIPPED) in str(caught.value)
    assert not (tmp_path / "store" / "store.json").exists()
    info = prepare("echonet", root, tmp_path / "store", clip=SPEC, pixels="raw", jobs=1, max_unreadable=0.5)
    assert info.counts["kept"] == 8


def test_a_folder_with_something_else_is_not_touched(phantoms: Layouts, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(UsageError, match="holds something else: give an empty folder"):
        prepare("echonet", phantoms("echonet"), tmp_path, clip=SPEC, pixels="raw", jobs=1)


def test_a_kill_at_the_very_beginning_leaves_nothing_in_the_way(
    phantoms: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".work.json.a1b2").write_text("{")
    monkeypatch.setattr(module, "_make_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)
    monkeypatch.undo()
    (tmp_path / "store" / "shards").rmdir()

    prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)

    assert not [name for name in content(tmp_path / "store") if name.startswith(".")]


def test_two_do_not_prepare_at_once(phantoms: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    make_shards = module._make_shards

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.undo()
        with pytest.raises(DataError) as caught:
            prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)
        said.append(str(caught.value))
        make_shards(*arguments)

    monkeypatch.setattr(module, "_make_shards", meanwhile)
    prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)

    assert said == [f"{tmp_path / 'store'}: another trainer prepare writes here: wait for it, or give another --out"]
    assert len(ClipStore.open(tmp_path / "store").samples) == 12


def test_the_lock_of_a_killed_preparation_is_free(phantoms: Layouts, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[clip]\nsize = 48\n[net]\nsize = 48\n")
    killer = (
        "import os, signal\nfrom trainer.data import prepare\nfrom trainer.cli import main\n"
        "prepare._make_shards = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nmain()\n"
    )
    arguments = ["prepare", "echonet", str(phantoms("echonet")), "--out", str(tmp_path / "store"),
                 "--config", str(tmp_path / "config.toml"), "--format", "raw"]  # fmt: skip
    died = warm.run("-c", killer, *arguments, cwd=ROOT)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (tmp_path / "store" / ".lock").exists()

    warm.run("-m", "trainer", *arguments, cwd=ROOT).check_returncode()

    assert len(ClipStore.open(tmp_path / "store").samples) == 12
    assert not (tmp_path / "store" / ".lock").exists()


@pytest.mark.parametrize("is_whole", [True, False])
def test_another_recipe_needs_another_folder(phantoms: Layouts, tmp_path: Path, is_whole: bool) -> None:
    store = tmp_path / "store"
    prepare("echonet", phantoms("echonet"), store, clip=SPEC, pixels="raw", jobs=1)
    before = content(store)
    if not is_whole:
        (store / "store.json").unlink()
        (store / "work.json").write_text("{}")
        before = content(store)

    with pytest.raises(UsageError, match="other data or another recipe: give another --out"):
        prepare("echonet", phantoms("echonet"), store, clip=ClipSpec(size=64), pixels="raw", jobs=1)
    assert content(store) == before


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(
    phantoms: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_make_shards", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): make room"):
        prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)
    monkeypatch.undo()

    assert prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1).counts["kept"]


def test_a_whole_data_set_can_be_a_test_set(phantoms: Layouts, tmp_path: Path) -> None:
    prepare("echonet", phantoms("echonet"), tmp_path / "store", clip=SPEC, pixels="raw", jobs=1, only="test")

    assert {one.split for one in ClipStore.open(tmp_path / "store").samples} == {"test"}


def origin(subject: str, key: str, split: str | None = None) -> Origin:
    """Return a loop of a patient."""
    return Origin(key=key, subject=subject, study="s", source=key, files=(key,), split=split, kind="loop",  # type: ignore[arg-type]
                  view=None, targets={})  # fmt: skip


def test_sides_are_drawn_by_patient_and_by_nothing_else() -> None:
    origins = [origin(str(number % 500), str(number)) for number in range(1000)]

    divided = divide(origins, seed=3, only=None)

    sides = {one.subject: one.split for one in divided}
    assert all(one.split == sides[one.subject] for one in divided)
    assert sides["7"] == draw_side("7", 3) == divide(origins[7:8], seed=3, only=None)[0].split
    counts = {side: list(sides.values()).count(side) for side in ("train", "val", "test")}
    assert counts["train"] == pytest.approx(400, abs=40)
    assert counts["val"] == pytest.approx(50, abs=25)
    assert sides != {one.subject: one.split for one in divide(origins, seed=4, only=None)}


def test_a_patient_on_both_sides_of_an_official_split_is_refused() -> None:
    with pytest.raises(DataError, match="subject 1: the data set's split has it in train and in test"):
        divide([origin("1", "a", "train"), origin("1", "b", "test")], seed=0, only=None)


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ucg: is none of mimic"):
        prepare("ucg", tmp_path, tmp_path / "store", clip=SPEC, pixels="raw")
