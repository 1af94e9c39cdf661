"""Provenance: phantoms are inherited from the weights that a run begins with, through every generation."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from model.ensemble import Ensemble
from tests.trainer.runs import make_run, make_tested_store
from tests.trainer.stores import SPEC, TINY_DECODER, TINY_NET, make_store
from trainer.config import PretrainConfig, resolve
from trainer.evaluate import evaluate
from trainer.pretrain import pretrain
from trainer.provenance import saw_phantoms
from trainer.publish import OF_PATIENTS, OF_PHANTOMS, publish
from trainer.run import BEST, PROVENANCE, read_provenance, read_weights


def pre_train(run: Path, store: Path, init: Path | None = None) -> Path:
    """Pre-train a network of a few weights; return the run."""
    content = {"net": TINY_NET, "clip": SPEC.model_dump(), "decoder": TINY_DECODER, "batch": 4, "epochs": 1,
               "init": str(init or "")}  # fmt: skip
    pretrain([store], run, resolve(PretrainConfig, "small", [], content))
    return run


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that says of itself that patients are in it."""
    return make_tested_store(tmp_path_factory.mktemp("provenance") / "patients")


@pytest.fixture(scope="module")
def encoders(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pre-trained runs: of phantoms, of patients, and of patients that began with those of phantoms."""
    folder = tmp_path_factory.mktemp("provenance")
    phantoms = make_store(folder / "phantoms", is_phantom=True)
    first = pre_train(folder / "of-phantoms", phantoms)
    return {
        "phantoms": first,
        "patients": pre_train(folder / "of-patients", patients),
        "both": pre_train(folder / "of-both", patients, init=first),
    }


@pytest.mark.parametrize(
    ("encoder", "statement"), [("phantoms", OF_PHANTOMS), ("both", OF_PHANTOMS), ("patients", OF_PATIENTS)]
)
def test_what_began_with_phantoms_is_published_as_trained_on_phantoms(
    encoders: dict[str, Path], patients: Path, tmp_path: Path, encoder: str, statement: str
) -> None:
    run = make_run(tmp_path / "run", [patients], ("lvef", "view"), encoder=encoders[encoder])
    evaluate(run, [patients], "test", tmp_path / "figures", resamples=0)

    publish([run], tmp_path / "shelf", "1.0")

    assert Ensemble.load(tmp_path / "shelf").info.statement == statement
    assert read_provenance(run).is_phantom == (statement == OF_PHANTOMS)


@pytest.mark.parametrize(("encoder", "expected"), [("both", True), ("patients", False)])
def test_weights_say_it_without_their_run(
    encoders: dict[str, Path], tmp_path: Path, encoder: str, expected: bool
) -> None:
    alone = tmp_path / "encoder.safetensors"
    alone.write_bytes((encoders[encoder] / BEST).read_bytes())

    assert saw_phantoms(alone) is expected


def rewrite(file: Path, weights: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """Write weights again with other metadata."""
    state, metadata = read_weights(weights)
    change(metadata)
    save_file(state, file, metadata)
    return file


def age(metadata: dict[str, str]) -> None:
    """Make metadata as they were before weights spoke of phantoms."""
    best = json.loads(metadata["best"])
    del best["is_phantom"]
    metadata["best"] = json.dumps(best)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"is_phantom": False, "start_sha256": None}, False),
        ({"is_phantom": True, "start_sha256": None}, True),
        ({"is_phantom": False, "start_sha256": "0" * 64}, True),
        (None, True),
    ],
)
def test_old_weights_count_as_of_phantoms_unless_their_run_rules_it_out(
    encoders: dict[str, Path], tmp_path: Path, beside: dict[str, object] | None, expected: bool
) -> None:
    file = rewrite(tmp_path / BEST, encoders["patients"] / BEST, age)
    if beside is not None:
        document = json.loads((encoders["patients"] / PROVENANCE).read_text())
        (tmp_path / PROVENANCE).write_text(json.dumps(document | beside))

    assert saw_phantoms(file) is expected


def test_imported_weights_saw_no_phantoms(encoders: dict[str, Path], tmp_path: Path) -> None:
    def as_import(metadata: dict[str, str]) -> None:
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"kind": "import"})
        del metadata["best"]

    assert not saw_phantoms(rewrite(tmp_path / "theirs.safetensors", encoders["patients"] / BEST, as_import))


def test_a_run_that_an_older_version_began_learns_it_when_it_goes_on(
    encoders: dict[str, Path], patients: Path, tmp_path: Path
) -> None:
    run = pre_train(tmp_path / "run", patients, init=encoders["phantoms"])
    document = json.loads((run / PROVENANCE).read_text())
    (run / PROVENANCE).write_text(json.dumps(document | {"is_phantom": False}))
    config = PretrainConfig.model_validate_json((run / "config.json").read_text())

    pretrain([patients], run, config, resume=True)

    assert read_provenance(run).is_phantom
