"""Training: what stops it, what it leaves behind, and that going on is as if it had never stopped."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch

from model.tasks import Task, View
from tests import warm
from tests.trainer.stores import SPEC, TINY_DECODER, TINY_NET, make_store
from trainer.config import FinetuneConfig, PretrainConfig, resolve
from trainer.data.manifest import Sample
from trainer.errors import DataError, RunError, UsageError
from trainer.finetune import finetune
from trainer.pretrain import pretrain
from trainer.run import BEST, CHECKPOINT, METRICS, RunFolder, open_finished, read_metrics, read_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small store."""
    return make_store(tmp_path_factory.mktemp("stores") / "discs")


def masked(**changes: Any) -> PretrainConfig:
    """Return a tiny pre-training."""
    content = {"net": TINY_NET, "clip": SPEC.model_dump(), "decoder": TINY_DECODER, "batch": 4, "epochs": 2, "seed": 3}
    return resolve(PretrainConfig, "small", [], content | changes)


def tuned(**changes: Any) -> FinetuneConfig:
    """Return a tiny fine-tuning."""
    content = {"net": TINY_NET, "clip": SPEC.model_dump(), "batch": 6, "epochs": 2, "seed": 3,
               "tasks": ["lvef", "view"]}  # fmt: skip
    return resolve(FinetuneConfig, "small", [], content | changes)


def losses(run: Path) -> list[float]:
    """Return the loss of every step."""
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


def test_a_pre_training_learns_and_keeps_its_best_weights(store: Path, tmp_path: Path) -> None:
    pretrain([store], tmp_path / "run", masked(epochs=12, optimiser={"peak_lr": 3e-3}))

    found = losses(tmp_path / "run")
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} == {"loss.png", "reconstructions.png"}
    assert (tmp_path / "run" / BEST).exists()


@pytest.mark.parametrize("changes", [{}, {"drop_path": 0.3, "grad_checkpointing": True, "mask": {"kind": "tube"}}])
def test_a_run_that_was_stopped_goes_on_with_the_same_losses(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = masked(epochs=4, checkpoint_steps=5, **changes)
    pretrain([store], tmp_path / "whole", config)
    record = RunFolder.record

    def stop(run: RunFolder, figures: dict[str, Any]) -> None:
        record(run, figures)
        if figures["step"] == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "record", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain([store], tmp_path / "stopped", config)
    monkeypatch.undo()
    pretrain([store], tmp_path / "stopped", config, resume=True)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 28


def test_a_killed_run_goes_on_to_the_last_digit(store: Path, tmp_path: Path) -> None:
    settings = {"net": TINY_NET, "clip": SPEC.model_dump(), "decoder": TINY_DECODER, "batch": 4, "checkpoint_steps": 4}
    sets = [f"--set={key}={_toml(value)}" for key, value in settings.items()]

    def command(out: str, *more: str) -> list[str]:
        return ["-m", "trainer", "pretrain", "--config", "small", "--data", str(store), "--epochs", "60",
                "--out", str(tmp_path / out), *sets, "--set=max_steps=45", *more]  # fmt: skip

    # Started cold, with another seed of its hashes than the killed one and its successor have.
    subprocess.run([sys.executable, *command("whole")], cwd=ROOT, check=True, capture_output=True)
    process = warm.start(*command("killed"), cwd=ROOT)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "killed" / METRICS
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 20):
        time.sleep(0.005)
    process.kill()
    process.join()
    before = len(losses(tmp_path / "killed"))
    warm.run(*command("killed", "--resume"), cwd=ROOT).check_returncode()

    assert 10 <= before < 45
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_two_batches_of_a_step_are_one_large_batch(store: Path, tmp_path: Path) -> None:
    pretrain([store], tmp_path / "one", masked(batch=8))
    pretrain([store], tmp_path / "two", masked(batch=4, accumulation=2))

    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def by_two_processes(*arguments: str) -> None:
    """Run a command of the trainer on two processes."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    answer = subprocess.run([sys.executable, *launch, "-m", "trainer", *arguments], cwd=ROOT, capture_output=True,
                            text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)  # fmt: skip
    assert answer.returncode == 0, answer.stderr


def test_two_processes_are_one_with_twice_the_accumulation(store: Path, tmp_path: Path) -> None:
    content = {"net": TINY_NET, "clip": SPEC.model_dump(), "decoder": TINY_DECODER, "batch": 4, "epochs": 3, "seed": 3}
    sets = [f"--set={key}={_toml(value)}" for key, value in content.items()]
    by_two_processes("pretrain", "--config", "small", "--data", str(store), "--out", str(tmp_path / "two"), *sets)

    pretrain([store], tmp_path / "one", masked(epochs=3, accumulation=2))

    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(tmp_path / "one")) == 9


def test_two_processes_wait_with_a_task_of_one_sample_in_every_epoch(tmp_path: Path) -> None:
    def rarely(sample: Sample) -> Sample:
        return sample if int(sample.subject) % 3 == 0 else sample.model_copy(update={"targets": {}})

    store = make_store(tmp_path / "store", subjects=30, change=rarely)
    content = {"net": TINY_NET, "clip": SPEC.model_dump(), "batch": 4, "epochs": 4, "seed": 3}
    sets = [f"--set={key}={_toml(value)}" for key, value in content.items()]

    by_two_processes("finetune", "--task", "lvef", "--task", "view", "--config", "small", "--data", str(store),
                     "--out", str(tmp_path / "run"), *sets)  # fmt: skip

    assert open_finished(tmp_path / "run")


def test_tasks_that_share_an_encoder_learn_together(tmp_path: Path) -> None:
    # Large enough that what is learned does not hang on the processor's rounding.
    store = make_store(tmp_path / "store", subjects=60)
    finetune([store], tmp_path / "run", tuned(epochs=25, optimiser={"peak_lr": 3e-3}))

    run = open_finished(tmp_path / "run")
    last = [line for line in read_metrics(run.path) if "val_loss" in line][-1]
    assert last["val_lvef"] < 0.5  # of the variance
    assert last["val_view"] < 0.3
    assert run.views == {Task.LVEF: (View.A4C,), Task.VIEW: (View.A4C, View.PLAX)}
    assert set(run.network().branches) == {"lvef", "view"}


def test_a_pre_trained_encoder_is_where_fine_tuning_starts(store: Path, tmp_path: Path) -> None:
    pretrain([store], tmp_path / "encoder", masked())
    finetune([store], tmp_path / "run", tuned(encoder=str(tmp_path / "encoder"), linear_probe=True))

    probe = open_finished(tmp_path / "run").network()
    weights, _ = read_weights(tmp_path / "encoder" / BEST)
    assert torch.equal(probe.encoder.blocks[1].attn.qkv.weight, weights["encoder.blocks.1.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"depth": 1}, "net.depth = 2"), ({"final_norm": False}, "net.final_norm = true")],
)
def test_an_encoder_of_another_architecture_is_refused(
    store: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    pretrain([store], tmp_path / "encoder", masked())

    with pytest.raises(RunError, match=words):
        finetune([store], tmp_path / "run", tuned(encoder=str(tmp_path / "encoder"), net=TINY_NET | change))


def test_an_encoder_of_another_normalisation_is_refused(store: Path, tmp_path: Path) -> None:
    pretrain([store], tmp_path / "encoder", masked())
    clip = SPEC.model_dump() | {"mean": (0.5, 0.5, 0.5)}

    with pytest.raises(RunError, match=r"clip\.mean"):
        finetune([store], tmp_path / "run", tuned(encoder=str(tmp_path / "encoder"), clip=clip))


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(store: Path, tmp_path: Path) -> None:
    config = tuned(epochs=4, optimiser={"start_lr": 1e-3, "peak_lr": 1e30, "warmup": 0.5})

    with pytest.raises(RunError, match=r"step \d+: the loss is not finite in the batch of \d{3}-"):
        finetune([store], tmp_path / "run", config)

    with pytest.raises(RunError, match="not finished"):
        open_finished(tmp_path / "run")


def test_a_full_disk_keeps_the_last_checkpoint(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = masked(epochs=4)
    save, kept = torch.save, []

    def fill(content: Any, file: Path) -> None:
        if content["step"] > 7:
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)
        kept.append(Path(file).read_bytes())

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(RunError, match=r"checkpoint.pt: cannot be written \(No space left on device\)"):
        pretrain([store], tmp_path / "run", config)

    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == kept[-1]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_run_is_never_written_over(store: Path, tmp_path: Path) -> None:
    pretrain([store], tmp_path / "run", masked(epochs=1))

    with pytest.raises(UsageError, match="is not empty"):
        pretrain([store], tmp_path / "run", masked(epochs=1))


def test_resuming_with_other_options_is_refused(store: Path, tmp_path: Path) -> None:
    pretrain([store], tmp_path / "run", masked(epochs=1))

    with pytest.raises(UsageError, match=r"optimiser\.peak_lr differs"):
        pretrain([store], tmp_path / "run", masked(epochs=1, optimiser={"peak_lr": 0.5}), resume=True)


def test_resuming_on_other_data_is_refused(store: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", seed=1)
    pretrain([store], tmp_path / "run", masked(epochs=1))

    with pytest.raises(UsageError, match="--data is not what"):
        pretrain([other], tmp_path / "run", masked(epochs=1), resume=True)


def test_resuming_with_other_weights_to_start_from_is_refused(store: Path, tmp_path: Path) -> None:
    pretrain([store], tmp_path / "encoder", masked(epochs=1))
    finetune([store], tmp_path / "run", tuned(epochs=1, encoder=str(tmp_path / "encoder")))
    rmtree(tmp_path / "encoder")
    pretrain([store], tmp_path / "encoder", masked(epochs=1, seed=9))

    with pytest.raises(UsageError, match="the weights to start from are not those"):
        finetune([store], tmp_path / "run", tuned(epochs=1, encoder=str(tmp_path / "encoder")), resume=True)


def test_resuming_where_there_is_no_run_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        pretrain([store], tmp_path / "run", masked(), resume=True)


def test_a_patient_on_both_sides_is_refused(tmp_path: Path) -> None:
    leaky = make_store(
        tmp_path / "leaky",
        change=lambda one: one.model_copy(update={"split": "val"}) if one.key == "003-PLAX" else one,
    )

    with pytest.raises(DataError, match=r"subject 003 is in split train and in val"):
        pretrain([leaky], tmp_path / "run", masked())


def test_a_task_without_labels_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="aortic_stenosis: no sample of split train in discs"):
        finetune([store], tmp_path / "run", tuned(tasks=["aortic_stenosis"]))


def test_a_store_of_another_recipe_is_refused(store: Path, tmp_path: Path) -> None:
    config = masked(net=TINY_NET | {"size": 64}, clip=SPEC.model_dump() | {"size": 64})

    with pytest.raises(DataError, match=r"clip.size = 32, the run wants 64"):
        pretrain([store], tmp_path / "run", config)


def test_a_step_that_the_data_cannot_fill_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a step takes 400 clips, the data has 30"):
        pretrain([store], tmp_path / "run", masked(batch=400))


def test_a_mask_that_hides_nothing_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mask.ratio: 0.01 hides 0 of 32 tokens"):
        pretrain([store], tmp_path / "run", masked(mask={"ratio": 0.01}))


def test_a_tenth_of_the_data_is_a_tenth_of_the_subjects(store: Path, tmp_path: Path) -> None:
    finetune([store], tmp_path / "run", tuned(data_fraction=0.4, batch=3))

    assert open_finished(tmp_path / "run").provenance.num_subjects == 6


def test_the_same_seed_gives_the_same_losses_and_another_does_not(store: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        finetune([store], tmp_path / name, tuned(seed=seed))

    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        # TOML has no word for None: what is not said is None.
        said = {key: item for key, item in value.items() if item is not None}
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in said.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
