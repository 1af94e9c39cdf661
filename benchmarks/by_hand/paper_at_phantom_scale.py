"""The paper's comparisons at the scale of phantoms: what pre-training, STF-Net, the mask and the labels are worth.

Four questions of the paper (its tables 2 to 5), each asked with the trainer's own commands on phantoms in the layout of
EchoNet-Dynamic, three seeds each: a pre-trained encoder against a random start, STF-Net against the largest token, 85 %
against 50 % hidden, a tenth of the labels against all of them. The task is the LVEF on the test patients.

The interval of a difference is over resampled patients: of each, the absolute error is averaged over the seeds first.
Answers about phantoms; what holds for hearts the paper says.

    python benchmarks/by_hand/paper_at_phantom_scale.py [--out DIR] [--cases 400]

At most 90 minutes on two cores; a second call goes on where the first was stopped.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from commands import interval, is_done, settings, trainer
from numpy.typing import NDArray

SEEDS = (0, 1, 2)
PATIENTS_SEED = 41

NET = ("net.tubelet=4", "net.depth=3", "net.heads=2")
PRETRAIN = ("batch=16", "epochs=16", "precision=fp32", "decoder.depth=1", "checkpoint_steps=100000")
FINETUNE = ("batch=16", "epochs=20", "precision=fp32", "optimiser.clip_norm=5.0", "checkpoint_steps=100000")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way of training."""

    name: str
    mask: float | None
    """Hidden share of its pre-training; None: a random start."""
    has_stf: bool = True
    fraction: float = 1.0


FULL = Arm(name="pre-trained 85 %, STF-Net, all labels", mask=0.85)
ARMS = (
    FULL,
    Arm(name="random start", mask=None),
    Arm(name="largest token instead of STF-Net", mask=0.85, has_stf=False),
    Arm(name="pre-trained 50 %", mask=0.5),
    Arm(name="a tenth of the labels", mask=0.85, fraction=0.1),
    Arm(name="a tenth of the labels, random start", mask=None, fraction=0.1),
)


def pretrain(out: Path, mask: float, seed: int) -> None:
    """Pre-train an encoder."""
    run = encoder(out, mask, seed)
    if not is_done(run):
        more = ["--resume"] if (run / "config.json").exists() else []
        trainer("pretrain", "--data", out / "store", "--out", run, "--config", "small", "--seed", seed,
                *settings(*NET, *PRETRAIN, f"mask.ratio={mask}"), *more)  # fmt: skip


def finetune(out: Path, arm: Arm, seed: int) -> None:
    """Fine-tune and evaluate an arm with one seed."""
    run = run_of(out, arm, seed)
    if not is_done(run):
        more: list[object] = ["--resume"] if (run / "config.json").exists() else []
        more += ["--encoder", encoder(out, arm.mask, seed)] if arm.mask else []
        more += [] if arm.has_stf else ["--no-stf"]
        trainer("finetune", "--task", "lvef", "--data", out / "store", "--out", run, "--config", "small", "--seed",
                seed, "--data-fraction", arm.fraction, *settings(*NET, *FINETUNE), *more)  # fmt: skip
    if not (run / "figures" / "predictions.csv").exists():
        trainer("evaluate", run, "--data", out / "store", "--out", run / "figures", "--resamples", 0)


def encoder(out: Path, mask: float, seed: int) -> Path:
    """Return the folder of a pre-training."""
    return out / f"encoder-{mask:g}-{seed}"


def run_of(out: Path, arm: Arm, seed: int) -> Path:
    """Return the folder of a fine-tuning."""
    return out / f"run-{ARMS.index(arm)}-{seed}"


def errors(out: Path, arm: Arm, seed: int) -> NDArray[np.float64]:
    """Return the absolute error of each test patient, points of LVEF, in the order of their keys."""
    with (run_of(out, arm, seed) / "figures" / "predictions.csv").open() as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: row["key"])
    return np.array([abs(float(row["prediction"]) - float(row["truth"])) for row in rows])


def table(out: Path) -> str:
    """Return the result as Markdown."""
    found = {arm.name: np.stack([errors(out, arm, seed) for seed in SEEDS]) for arm in ARMS}
    whole = found[FULL.name].mean(axis=0)
    lines = [
        "| arm | LVEF MAE, points | each seed | difference to the first, 95 % interval |",
        "|---|---|---|---|",
    ]
    for name, by_seed in found.items():
        mean = by_seed.mean(axis=0)
        low, high = interval(mean)
        seeds = ", ".join(f"{one:.2f}" for one in by_seed.mean(axis=1))
        if name == FULL.name:
            difference = ""
        else:
            worse_low, worse_high = interval(mean - whole)
            difference = f"{(mean - whole).mean():+.2f} [{worse_low:+.2f}, {worse_high:+.2f}]"
        lines.append(f"| {name} | {mean.mean():.2f} [{low:.2f}, {high:.2f}] | {seeds} | {difference} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "paper_at_phantom_scale")
    parser.add_argument("--cases", type=int, default=400, help="phantom patients: six tenths train, two val, two test")
    options = parser.parse_args(arguments)
    out, begin = options.out, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "data" / "PHANTOM").exists():
        trainer("phantom", "--layout", "echonet", "--out", out / "data", "--cases", options.cases, "--seed",
                PATIENTS_SEED)  # fmt: skip
    trainer("prepare", "echonet", out / "data", "--out", out / "store", "--config", "small", "--format", "raw")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        masks = sorted({arm.mask for arm in ARMS if arm.mask}, reverse=True)
        list(pool.map(lambda job: pretrain(out, *job), [(mask, seed) for mask in masks for seed in SEEDS]))
        print(f"pre-trained after {(time.monotonic() - begin) / 60:.0f} min", file=sys.stderr)
        list(pool.map(lambda job: finetune(out, *job), [(arm, seed) for arm in ARMS for seed in SEEDS]))
    print(table(out))
    print(f"\n{options.cases} phantom patients, {len(SEEDS)} seeds, {(time.monotonic() - begin) / 60:.0f} minutes.")


if __name__ == "__main__":
    main()
