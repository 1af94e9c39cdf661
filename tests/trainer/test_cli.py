"""The command: one line for each mistake, the exit code that scripts rely on, and others' weights in our run."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.doubles.checkpoints import hugging_face
from tests.doubles.loops import picture, write_native
from tests.trainer.runs import make_run, make_tested_store
from tests.trainer.stores import TINY_NET, make_store
from trainer.cli import main
from trainer.run import open_finished


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small store."""
    return make_store(tmp_path_factory.mktemp("cli") / "store")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Return the exit code of `trainer ...`."""
    monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def settings(**changes: object) -> list[str]:
    """Return options that make a run tiny."""
    net = TINY_NET | changes
    return [
        *("--config", "small", "--set", "batch=4", "--set", "clip.num_frames=4", "--set", "clip.size=32"),
        *(part for key, value in net.items() for part in ("--set", f"net.{key}={json.dumps(value)}")),
    ]


def test_a_fine_tuning_runs_from_the_command_line(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, "finetune", "--task", "lvef", "--task", "view", "--data", store, "--out",
                tmp_path / "run", "--epochs", 1, "--seed", 5, "--no-stf", *settings())  # fmt: skip

    run = open_finished(tmp_path / "run")
    assert code == 0
    assert "fine-tuned" in capsys.readouterr().out
    evaluated = call(monkeypatch, "evaluate", run.path, "--data", store, "--out", tmp_path / "figures", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert evaluated == 0
    assert set(figures["tasks"]) == {"lvef", "view"}
    assert set(figures["tasks"]["lvef"]["ci95"]) >= {"mae", "rmse", "r2", "pearson", "bias", "std"}
    assert (run.config.seed, run.config.epochs, run.config.net.pool) == (5, 1, "max")
    assert run.provenance.command[:2] == ("trainer", "finetune")


def test_a_run_is_explained_published_and_measured_as_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_tested_store(tmp_path / "store")
    run = make_run(tmp_path / "run", [store], ("lvef", "view"))
    loop = write_native(tmp_path / "loop.dcm", picture(20))

    assert call(monkeypatch, "explain", run, loop, "--out", tmp_path / "picture", "--all-rows") == 0
    assert (tmp_path / "picture" / "contact.png").exists()
    assert "lvef: " in capsys.readouterr().out
    assert call(monkeypatch, "evaluate", run, "--data", store, "--out", tmp_path / "figures") == 0
    shelf = tmp_path / "shelf"
    assert call(monkeypatch, "publish", run, "--ensemble", shelf, "--version", "1.0") == 0
    capsys.readouterr()
    assert call(monkeypatch, "evaluate", shelf, "--data", store, "--out", tmp_path / "served", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["ensemble"]["version"] == "1.0"
    assert set(figures["as_served"]) == {"lvef"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("finetune", "--task", "lvef"), 2, "Missing option"),
        (("finetune", "--task", "ef", "--data", "x", "--out", "y"), 2, "'ef' is not one of"),
        (("pretrain", "--data", "/nowhere", "--out", "/nowhere/run"), 1, "/nowhere: is no finished store"),
        (("pretrain", "--data", "x", "--out", "y", "--set", "epoch=3"), 2, "epoch: Extra inputs"),
        (("phantom", "--layout", "lvh", "--out", "x", "--cases", "1"), 2, "'lvh' is not one of"),
        (("prepare", "mimic", "/nowhere", "--out", "/nowhere/store"), 2, "/nowhere: is no folder"),
        (("publish", "--ensemble", "/nowhere"), 2, "give at least one run and --version, or --rollback"),
        (("publish", "run", "--ensemble", "/nowhere", "--rollback"), 2, "--rollback: takes --ensemble alone"),
        (("explain", "/nowhere", "loop.dcm", "--out", "x"), 1, "/nowhere is no run"),
        (("import-weights", "/nowhere.pth", "--out", "/nowhere/x"), 2, "/nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    found = call(monkeypatch, *arguments)

    lines = capsys.readouterr().err.strip().splitlines()
    assert found == code
    assert len(lines) == 1
    assert lines[0].startswith("trainer: ")
    assert words in lines[0]


def test_imported_weights_are_where_a_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.trainer import stores

    spec = stores.SPEC.model_copy(update={"num_frames": 8})
    monkeypatch.setattr(stores, "SPEC", spec)
    eight = {"indices": tuple(range(8)), "take": (0, 1, 2, 3) * 2}
    store = make_store(tmp_path / "store", change=lambda one: one.model_copy(update=eight))
    torch.save(hugging_face(), tmp_path / "theirs.bin")
    imported = call(monkeypatch, "import-weights", tmp_path / "theirs.bin", "--out", tmp_path / "ours.safetensors",
                    "--heads", 4, "--frames", 8, "--size", 32)  # fmt: skip
    fits = settings(frames=8, dim=48, depth=3, heads=4, mlp_dim=96)
    command = ["finetune", "--task", "lvef", "--data", store, "--epochs", 1, "--linear-probe", "--encoder",
               tmp_path / "ours.safetensors", *fits, "--set", "clip.num_frames=8"]  # fmt: skip

    unlike = call(monkeypatch, *command, "--out", tmp_path / "unlike")
    message = capsys.readouterr().err
    alike = call(monkeypatch, *command, "--out", tmp_path / "alike", "--set", "clip.mean=[0.485, 0.456, 0.406]",
                 "--set", "clip.std=[0.229, 0.224, 0.225]")  # fmt: skip

    assert (imported, unlike, alike) == (0, 1, 0), message
    assert "clip.mean" in message
    theirs = hugging_face()["videomae.encoder.layer.2.output.dense.weight"]
    network = open_finished(tmp_path / "alike").network()
    assert torch.equal(network.encoder.blocks[2].mlp.fc2.weight, theirs)
