"""Clips of one beat against clips of the whole loop, on loops of mixed frame rates and lengths: what is the LVEF worth?

Phantoms in the layout of MIMIC-IV-ECHO, every loop with a frame rate and a length of its own (0.9 to 3.5 s). Both arms
learn the LVEF from the same loops, with the same start and as many steps; they differ in `clip.sampling` alone. Of each
test loop the error is the mean over the seeds; the interval is over resampled patients.

    python benchmarks/by_hand/beat_against_uniform.py [--out DIR] [--encoder RUN] [--cases 220] [--tests 80]

An hour on two cores; a second call goes on where the first was stopped.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from commands import interval, is_done, settings, trainer
from numpy.typing import NDArray

SEEDS = (0, 1)
ARMS = ("uniform", "beat")
LEARN_SEED, TEST_SEED = 61, 62
NET = ("net.heads=2", "net.tubelet=4")
FINETUNE = ("batch=16", "precision=fp32", "flip=false", "optimiser.clip_norm=5.0", "optimiser.warmup=0.05",
            "jitter.degrees=8.0", "jitter.shift=0.04", "checkpoint_steps=100000")  # fmt: skip
LENGTHS = ((0.0, 1.5), (1.5, 2.5), (2.5, 9.0))
"""Seconds of a loop: the groups of the table."""


def recipe(arm: str) -> tuple[str, ...]:
    """Return how an arm makes its clips."""
    return ("clip.crop=sector", f"clip.sampling={arm}")


def make_data(out: Path, name: str, cases: int, seed: int) -> None:
    """Write phantoms, and the store of each arm."""
    data = out / name
    if not (data / "PHANTOM").exists():
        trainer("phantom", "--layout", "mimic", "--out", data, "--cases", cases, "--seed", seed, "--mixed-times")
    more = ["--all-to", "test"] if name == "test" else []
    for arm in ARMS:
        trainer("prepare", "mimic", data, "--out", out / f"{name}-{arm}", "--config", "small", "--format", "raw",
                *settings(*recipe(arm)), *more)  # fmt: skip


def learn(out: Path, arm: str, seed: int, encoder: Path | None, steps: int) -> None:
    """Train and evaluate an arm with one seed."""
    run = out / f"run-{arm}-{seed}"
    if not is_done(run):
        more: list[object] = ["--resume"] if (run / "config.json").exists() else []
        more += ["--encoder", encoder] if encoder else []
        # The schedule ends with the steps, whatever an epoch is of the arm.
        trainer("finetune", "--task", "lvef", "--data", out / f"learn-{arm}", "--out", run, "--config", "small",
                "--seed", seed, "--epochs", 1000, *settings(*NET, *FINETUNE, *recipe(arm), f"max_steps={steps}"),
                *more)  # fmt: skip
    if not (run / "figures" / "predictions.csv").exists():
        trainer("evaluate", run, "--data", out / f"test-{arm}", "--out", run / "figures", "--resamples", 0)


def errors(out: Path, arm: str) -> dict[str, float]:
    """Return each test loop's absolute error in points, the mean over the seeds."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        with (out / f"run-{arm}-{seed}" / "figures" / "predictions.csv").open() as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["key"], []).append(abs(float(row["prediction"]) - float(row["truth"])))
    return {key: float(np.mean(values)) for key, values in found.items()}


def facts(out: Path) -> dict[str, tuple[str, float]]:
    """Return patient and seconds of each loop."""
    lines = (out / "test-uniform" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    return {
        one["key"]: (one["subject"], one["num_frames"] * one["frame_time_ms"] / 1000.0)
        for one in samples
        if one["kind"] == "loop"
    }


def by_patient(values: dict[str, float], patients: dict[str, str]) -> NDArray[np.float64]:
    """Return the mean of each patient."""
    of: dict[str, list[float]] = {}
    for key, value in values.items():
        of.setdefault(patients[key], []).append(value)
    return np.array([np.mean(own) for own in of.values()])


def table(out: Path) -> str:
    """Return the result as Markdown."""
    known = facts(out)
    found = {arm: errors(out, arm) for arm in ARMS}
    lines = ["| loops | number | uniform, points | beat, points | difference, 95 % interval |", "|---|---|---|---|---|"]
    for low, high in ((0.0, 9.0), *LENGTHS):
        keys = [key for key in found["beat"] if low <= known[key][1] < high]
        means = [np.mean([found[arm][key] for key in keys]) for arm in ARMS]
        patients = {key: known[key][0] for key in keys}
        differences = by_patient({key: found["beat"][key] - found["uniform"][key] for key in keys}, patients)
        from_low, to_high = interval(differences)
        name = "all" if high - low > 8.0 else f"{low:.1f} to {high:.1f} s" if high < 9.0 else f"{low:.1f} s and longer"
        lines.append(f"| {name} | {len(keys)} | {means[0]:.2f} | {means[1]:.2f} |"
                     f" {differences.mean():+.2f} [{from_low:+.2f}, {to_high:+.2f}] |")  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "beat_against_uniform")
    parser.add_argument("--encoder", type=Path, help="run whose encoder both arms begin with; default: random weights")
    parser.add_argument("--cases", type=int, default=220)
    parser.add_argument("--tests", type=int, default=80)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args(arguments)
    out, begin = options.out, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    make_data(out, "learn", options.cases, LEARN_SEED)
    make_data(out, "test", options.tests, TEST_SEED)
    print(f"prepared after {(time.monotonic() - begin) / 60:.0f} min", file=sys.stderr)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: learn(out, job[0], job[1], options.encoder, options.steps),
                      [(arm, seed) for seed in SEEDS for arm in ARMS]))  # fmt: skip
    print(table(out))
    print(f"\n{options.cases} phantom patients, {options.tests} to test, {len(SEEDS)} seeds, {options.steps} steps,"
          f" {(time.monotonic() - begin) / 60:.0f} minutes.")  # fmt: skip


if __name__ == "__main__":
    main()
