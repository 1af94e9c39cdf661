"""Publishing: checked against what is in use, in one rename, back again; workers see the old version or the new one."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.bundle import BundleError, load, reference_clip  # type: ignore[attr-defined]
from model.ensemble import CURRENT, Ensemble, locate
from model.tasks import Task
from tests import warm
from tests.trainer.runs import make_run, make_tested_store
from trainer import publish as module
from trainer.errors import PublishError, RunError, UsageError
from trainer.evaluate import EVALUATION, evaluate
from trainer.publish import OF_PATIENTS, OF_PHANTOMS, PUBLICATION, publish, roll_back
from trainer.run import open_finished
from worker.engine import CurrentEngine, load_engine

ROOT = Path(__file__).parents[2]
TASKS = ("lvef", "lvedv", "view")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tested_store(tmp_path_factory.mktemp("publish") / "store")


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two evaluated runs."""
    folder = tmp_path_factory.mktemp("publish")
    runs = [make_run(folder / f"run{seed}", [store], TASKS, seed=seed) for seed in (1, 2)]
    for run in runs:
        evaluate(run, [store], "test", folder / "figures", resamples=50)
    return runs


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> list[Path]:
    """Copies that a test may change."""
    return [shutil.copytree(run, tmp_path / run.name) for run in trained]


def change_evaluation(run: Path, change: Callable[[dict], object]) -> None:
    """Change what a run's evaluation says."""
    document = json.loads((run / EVALUATION).read_text())
    change(document)
    (run / EVALUATION).write_text(json.dumps(document))


def test_a_worker_loads_what_was_published(runs: list[Path], tmp_path: Path) -> None:
    added = publish(runs, tmp_path / "shelf", "1.0", name="discs")

    ensemble = Ensemble.load(tmp_path / "shelf")
    assert (ensemble.info.name, ensemble.info.version) == ("discs", "1.0")
    assert ensemble.tasks == {Task(task) for task in TASKS}
    assert locate(tmp_path / "shelf") == added.resolve()
    publication = json.loads((added / PUBLICATION).read_text())
    assert [one["run"] for one in publication["members"].values()] == [str(run) for run in runs]
    assert publication["replaces"] is None
    assert set(json.loads((added / EVALUATION).read_text())["members"]) == {"member-0", "member-1"}


def test_members_answer_as_their_runs_do(runs: list[Path], tmp_path: Path) -> None:
    added = publish(runs, tmp_path / "shelf", "1.0")

    for number, run in enumerate(runs):
        made = load(added / f"member-{number}")
        clip, indices = reference_clip(made.manifest.clip, 5)
        with torch.no_grad():
            own, published = open_finished(run).network()(clip, indices), made.network(clip, indices)
        assert all(torch.equal(own[task], published[task]) for task in TASKS)


def test_half_the_bytes_answer_nearly_the_same(runs: list[Path], tmp_path: Path) -> None:
    sizes = [
        sum(
            file.stat().st_size
            for file in publish(runs, tmp_path / f"shelf{half}", "1", half=half).rglob("*.safetensors")
        )
        for half in (False, True)
    ]

    assert sizes[1] < 0.62 * sizes[0]


@pytest.mark.parametrize(("is_phantom", "statement"), [(True, OF_PHANTOMS), (False, OF_PATIENTS)])
def test_every_report_says_what_the_numbers_are_worth(
    runs: list[Path], tmp_path: Path, is_phantom: bool, statement: str
) -> None:
    provenance = json.loads((runs[1] / "run.json").read_text())
    (runs[1] / "run.json").write_text(json.dumps(provenance | {"is_phantom": is_phantom}))

    publish(runs, tmp_path / "shelf", "1.0")

    assert Ensemble.load(tmp_path / "shelf").info.statement == statement


def unfinish(run: Path) -> None:
    provenance = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(provenance | {"status": "running"}))


def retrain(run: Path) -> None:
    file = run / "best.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def forget(run: Path) -> None:
    change_evaluation(run, lambda one: one["tasks"].pop("lvedv"))


def validate(run: Path) -> None:
    change_evaluation(run, lambda one: one.update(split="val"))


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (unfinish, RunError, "is not finished"),
        (retrain, PublishError, "is of other weights than the run has now"),
        (lambda run: (run / EVALUATION).unlink(), PublishError, "was not evaluated: trainer evaluate"),
        (validate, PublishError, "is of split val"),
        (
            lambda run: change_evaluation(run, lambda one: one["tasks"].pop("lvedv")),
            PublishError,
            "says nothing of lvedv",
        ),
        (lambda run: (run / EVALUATION).write_text("{"), PublishError, "Invalid JSON"),
    ],
)
def test_a_run_that_is_not_ready_is_refused_and_nothing_is_made(
    runs: list[Path], tmp_path: Path, spoil: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    spoil(runs[1])

    with pytest.raises(error, match=words):
        publish(runs, tmp_path / "shelf", "1.0")
    assert not (tmp_path / "shelf" / CURRENT).exists()


def test_a_run_counts_once(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a run is given twice"):
        publish([runs[0], runs[0]], tmp_path / "shelf", "1.0")


@pytest.mark.parametrize("version", ["../1.0", "", ".1", "a/b", "1 0"])
def test_a_version_has_a_plain_name(runs: list[Path], tmp_path: Path, version: str) -> None:
    with pytest.raises(UsageError, match="use letters, digits"):
        publish(runs, tmp_path / "shelf", version)


def test_a_version_never_changes(runs: list[Path], tmp_path: Path) -> None:
    publish(runs, tmp_path / "shelf", "1.0")

    with pytest.raises(PublishError, match="is there already"):
        publish(runs[:1], tmp_path / "shelf", "1.0")
    assert len(Ensemble.load(tmp_path / "shelf")._bundles) == 2


def worse(run: Path) -> None:
    def change(document: dict) -> None:
        document["tasks"]["lvef"]["mae"] *= 10

    change_evaluation(run, change)


def elsewhere(run: Path) -> None:
    change_evaluation(run, lambda one: one.update(data_digests={"discs": "f" * 64}))


@pytest.mark.parametrize(
    ("spoil", "words"), [(worse, "lvef: is worse: mae"), (elsewhere, "lvef: was measured on other data")]
)
def test_what_is_worse_needs_a_reason(
    runs: list[Path], tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    publish(runs, tmp_path / "shelf", "1.0")
    for run in runs:
        spoil(run)

    with pytest.raises(PublishError, match=words):
        publish(runs, tmp_path / "shelf", "1.1")
    assert locate(tmp_path / "shelf").name == "1.0"
    added = publish(runs, tmp_path / "shelf", "1.1", force="the old one knew the test set")

    publication = json.loads((added / PUBLICATION).read_text())
    assert publication["forced_because"] == "the old one knew the test set"
    assert any(words in one for one in publication["objections"])
    assert publication["replaces"] == "1.0"


def test_a_task_that_gets_lost_needs_a_reason(runs: list[Path], store: Path, tmp_path: Path) -> None:
    publish(runs, tmp_path / "shelf", "1.0")
    less = make_run(tmp_path / "less", [store], ("lvef", "view"))
    evaluate(less, [store], "test", tmp_path / "figures", resamples=0)
    change_evaluation(less, lambda one: one["tasks"]["lvef"].update(mae=0.0))

    with pytest.raises(PublishError, match="lvedv: the ensemble in use answers it, these runs do not"):
        publish([less], tmp_path / "shelf", "1.1")


def test_an_ensemble_that_recognises_no_view_is_refused(store: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "blind", [store], ("lvef",))
    evaluate(run, [store], "test", tmp_path / "figures", resamples=0)

    with pytest.raises(BundleError, match="no bundle recognises views"):
        publish([run], tmp_path / "shelf", "1.0")
    assert list((tmp_path / "shelf" / "versions").iterdir()) == []


def test_rolling_back_puts_the_version_before_into_use(runs: list[Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    publish(runs, shelf, "1.0")
    publish(runs[:1], shelf, "1.1", force="to see")

    assert roll_back(shelf).name == "1.0"
    assert Ensemble.load(shelf).info.version == "1.0"
    assert (shelf / "versions" / "1.1").is_dir()
    with pytest.raises(PublishError, match="no previous version"):
        roll_back(shelf)


def test_rolling_back_again_goes_one_version_further(runs: list[Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    for version in ("1.0", "1.1", "1.2"):
        publish(runs, shelf, version, force="to see")

    assert [roll_back(shelf).name for _ in range(2)] == ["1.1", "1.0"]
    assert Ensemble.load(shelf).info.version == "1.0"


def test_what_is_published_after_a_rollback_goes_back_to_what_it_replaced(runs: list[Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    for version in ("1.0", "1.1", "1.2"):
        publish(runs, shelf, version, force="to see")
    roll_back(shelf)
    publish(runs, shelf, "1.3", force="to see")

    assert [roll_back(shelf).name for _ in range(2)] == ["1.1", "1.0"]


def test_a_version_that_was_copied_by_hand_ends_the_chain(runs: list[Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    for version in ("1.0", "1.1", "1.2"):
        publish(runs, shelf, version, force="to see")
    (shelf / "versions" / "1.1" / PUBLICATION).unlink()

    assert roll_back(shelf).name == "1.1"
    with pytest.raises(PublishError, match=r"1\.1: has no publication\.json, which would say what it replaced"):
        roll_back(shelf)
    assert Ensemble.load(shelf).info.version == "1.1"


def test_a_replaced_version_that_was_removed_is_named(runs: list[Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    for version in ("1.0", "1.1"):
        publish(runs, shelf, version, force="to see")
    shutil.rmtree(shelf / "versions" / "1.0")

    with pytest.raises(PublishError, match=r"1\.0: is gone, and 1\.1 replaced it"):
        roll_back(shelf)
    assert Ensemble.load(shelf).info.version == "1.1"


def test_there_is_nothing_to_roll_back_to(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="is no shelf"):
        roll_back(tmp_path / "nowhere")
    publish(runs, tmp_path / "shelf", "1.0")
    with pytest.raises(PublishError, match="no previous version"):
        roll_back(tmp_path / "shelf")


@pytest.mark.parametrize(("threshold", "floor"), [(0.6, 0.4), (0.3, 0.3)])
def test_the_floor_of_a_version_is_never_over_its_threshold(
    runs: list[Path], tmp_path: Path, threshold: float, floor: float
) -> None:
    added = publish(runs, tmp_path / "shelf", "1.0", view_threshold=threshold)

    assert Ensemble.load(added).info.view_floor == floor


def test_a_floor_over_the_threshold_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--view-floor 0\.7: is over --view-threshold 0\.6"):
        publish(runs, tmp_path / "shelf", "1.0", view_floor=0.7)


def publish_and_die(run: Path, shelf: Path, where: str) -> None:
    """Publish a run as 1.1 in another process, which SIGKILL ends where a function is called."""
    killer = (
        "import os, signal, sys\nfrom pathlib import Path\nimport trainer.publish, trainer.shelf\n"
        "from unittest import mock\n"
        f"with mock.patch('{where}', lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)):\n"
        f"    trainer.publish.publish([Path({str(run)!r})], Path({str(shelf)!r}), '1.1', force='to see')\n"
    )
    died = warm.run("-c", killer, cwd=ROOT)
    assert died.returncode == -signal.SIGKILL, died.stderr


@pytest.mark.parametrize(
    ("where", "in_use"),
    [
        ("trainer.publish.Ensemble.load", "1.0"),
        ("trainer.shelf.Shelf.switch", "1.0"),
        ("trainer.shelf._fsync", "1.1"),
    ],
)
def test_killed_at_any_moment_one_version_is_in_use_and_the_next_call_works(
    runs: list[Path], tmp_path: Path, where: str, in_use: str
) -> None:
    """SIGKILL at the check of what was written, before the switch, and after it."""
    shelf = tmp_path / "shelf"
    publish(runs, shelf, "1.0")

    publish_and_die(runs[0], shelf, where)

    assert Ensemble.load(shelf).info.version == in_use
    publish(runs[:1], shelf, "1.2", force="again")
    assert Ensemble.load(shelf).info.version == "1.2"
    assert roll_back(shelf).name == in_use
    assert not list((shelf / "versions").glob(".*"))


def test_the_same_call_finishes_a_version_that_a_kill_kept_from_use(runs: list[Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    publish(runs, shelf, "1.0")
    publish_and_die(runs[0], shelf, "trainer.shelf.Shelf.switch")
    before = (shelf / "versions" / "1.1" / PUBLICATION).read_bytes()

    added = publish(runs[:1], shelf, "1.1", force="to see")

    assert (locate(shelf), (added / PUBLICATION).read_bytes()) == (added.resolve(), before)
    assert roll_back(shelf).name == "1.0"
    with pytest.raises(PublishError, match="is there already"):
        publish(runs[:1], shelf, "1.1", force="to see")


def test_a_first_version_that_a_kill_kept_from_use_is_finished_too(runs: list[Path], tmp_path: Path) -> None:
    publish_and_die(runs[0], tmp_path / "shelf", "trainer.shelf.Shelf.switch")
    assert not (tmp_path / "shelf" / CURRENT).exists()

    publish(runs[:1], tmp_path / "shelf", "1.1", force="to see")

    assert Ensemble.load(tmp_path / "shelf").info.version == "1.1"


@pytest.mark.parametrize(
    "other",
    [
        {"runs": slice(1, 2)},
        {"runs": slice(0, 2)},
        {"name": "others"},
        {"view_threshold": 0.7},
        {"view_floor": 0.5},
        {"half": True},
    ],
)
def test_another_call_does_not_finish_it(runs: list[Path], tmp_path: Path, other: dict[str, Any]) -> None:
    shelf = tmp_path / "shelf"
    publish(runs, shelf, "1.0")
    publish_and_die(runs[0], shelf, "trainer.shelf.Shelf.switch")

    with pytest.raises(PublishError, match=r"1\.1: is there already"):
        publish(runs[other.pop("runs", slice(0, 1))], shelf, "1.1", force="to see", **other)
    assert Ensemble.load(shelf).info.version == "1.0"


def test_a_version_that_says_less_of_phantoms_than_its_runs_is_not_finished(runs: list[Path], tmp_path: Path) -> None:
    publish_and_die(runs[0], tmp_path / "shelf", "trainer.shelf.Shelf.switch")
    provenance = json.loads((runs[0] / "run.json").read_text())
    (runs[0] / "run.json").write_text(json.dumps(provenance | {"is_phantom": True}))

    with pytest.raises(PublishError, match=r"1\.1: is there already"):
        publish(runs[:1], tmp_path / "shelf", "1.1", force="to see")


def test_what_was_kept_from_use_is_not_finished_once_another_version_is_in_use(
    runs: list[Path], tmp_path: Path
) -> None:
    shelf = tmp_path / "shelf"
    publish(runs, shelf, "1.0")
    publish_and_die(runs[0], shelf, "trainer.shelf.Shelf.switch")
    publish(runs, shelf, "1.2")

    with pytest.raises(PublishError, match=r"1\.1: is there already"):
        publish(runs[:1], shelf, "1.1", force="to see")
    assert Ensemble.load(shelf).info.version == "1.2"


def test_two_do_not_publish_at_once(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    said: list[str] = []

    def meanwhile(path: Path) -> None:
        try:
            publish(runs, shelf, "2.0")
        except PublishError as error:
            said.append(str(error))

    monkeypatch.setattr(module.Ensemble, "load", meanwhile)  # type: ignore[attr-defined]
    publish(runs, shelf, "1.0")

    assert len(said) == 1
    assert "somebody else publishes here" in said[0]


def test_a_plain_ensemble_is_not_overwritten(runs: list[Path], tmp_path: Path) -> None:
    publish(runs, tmp_path / "shelf", "1.0")
    plain = shutil.copytree(locate(tmp_path / "shelf"), tmp_path / "plain")

    with pytest.raises(PublishError, match="is a plain ensemble"):
        publish(runs, plain, "2.0")


def test_a_full_disk_leaves_what_is_in_use(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    publish(runs, shelf, "1.0")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.bundle, "write_json", full)  # type: ignore[attr-defined]
    with pytest.raises(PublishError, match="No space left on device: what is in use stays"):
        publish(runs[:1], shelf, "1.1", force="to see")
    assert Ensemble.load(shelf).info.version == "1.0"


def test_a_worker_takes_up_what_is_published_and_what_is_rolled_back(runs: list[Path], tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    publish(runs, shelf, "1.0")
    current = CurrentEngine(shelf, load_engine)
    versions = [current().info.version]
    publish(runs[:1], shelf, "1.1", force="to see")
    versions.append(current().info.version)
    roll_back(shelf)
    versions.append(current().info.version)

    assert versions == ["1.0", "1.1", "1.0"]
    assert (shelf / CURRENT).readlink() == Path("versions/1.0")
