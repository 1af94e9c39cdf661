"""A worker on the CPU: how busy its network is, what it keeps in memory, and how soon after its start it answers.

The loops of a study go through `worker.loops.analyse_files`, as in a worker: decoded beside the network. Twice: with
the ensemble that the package ships, whose network is quicker than the decoding of a loop, and with one of full size.
Each start is that of a new process, with all that a worker imports; the files are in the page cache.

    python benchmarks/worker_process.py [--loops 30] [--full-size-loops 6] [--pairs 2]
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import torch
from side_by_side import Results, Side, parser, same_work, seconds

from model import bundle, ensemble
from model.clip.loop import Clips, load_clips
from model.clip.spec import ClipSpec
from model.ensemble import SHIPPED, Ensemble, EnsembleManifest, Member
from model.net.echo_vision import EchoVision, NetConfig
from model.phantom.heart import Heart
from model.prediction import LoopOutputs
from model.tasks import CATALOGUE, Task, View
from worker.engine import Engine
from worker.loops import AnalysedLoop, Verdict, analyse_files
from worker.phantom_study import Shot, make_study

START = """
import json, sys, time
from pathlib import Path
import worker.tasks
from dicom_node.logs import configure_logs
from worker.engine import load_engine
from worker.loops import AnalysedLoop, analyse_files
configure_logs()
begin = time.perf_counter()
engine = load_engine(Path(sys.argv[1]), device="cpu")
loading = time.perf_counter() - begin
verdicts = analyse_files([Path(name) for name in sys.argv[2:]], engine)
assert isinstance(next(verdicts), AnalysedLoop)
print(json.dumps(loading), flush=True)
assert all(isinstance(one, AnalysedLoop) for one in verdicts)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({key: int(status[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM")}))
"""
"""A worker's process: loads its networks, analyses the loops; says how long it loaded when the first has its answer,
and at the end its memory in bytes, as it is then and as it was at most."""
PAIR = (View.A4C, View.PLAX)


def write_loops(folder: Path) -> list[Path]:
    """Write a phantom's loops, 48 frames of 480 x 640 each."""
    paths = []
    heart = Heart(edv_ml=120.0, esv_ml=50.0)
    shots = [Shot(view=view) for view in PAIR]
    for number, instance in enumerate(make_study(heart, seed=0, at=datetime(2026, 1, 1, tzinfo=UTC), shots=shots)):
        paths.append(folder / f"{number}.dcm")
        instance.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_full_size(path: Path) -> Path:
    """Write an ensemble of one full-size network with random weights that answers two tasks from one STF-Net."""
    net = NetConfig(share="fusion")
    views = {task: tuple(View) for task in (Task.VIEW, Task.LVEF)}
    torch.manual_seed(0)
    network = EchoVision(net, {task.value: CATALOGUE[task].num_outputs for task in views}).eval()
    path.mkdir()
    bundle.save(path / "member", network, net=net, clip=ClipSpec(), views=views, data_digests={}, code_version="0",
                seed=0)  # fmt: skip
    member = Member(name="member", sha256=bundle.sha256_of(path / "member" / bundle.MANIFEST))
    ensemble.save(path, EnsembleManifest(name="random", version="0", statement="random weights: no meaning",
                                         bundles=(member,), view_threshold=0.6))  # fmt: skip
    return path


@dataclass(kw_only=True)
class Watched:
    """An engine, and how long it computed."""

    engine: Engine
    seconds: list[float] = field(default_factory=list)

    @property
    def spec(self) -> ClipSpec:
        """Return the recipe."""
        return self.engine.spec

    def look_at(self, clips: Clips) -> LoopOutputs:
        """Return what the engine says."""
        begin = time.perf_counter()
        outputs = self.engine.look_at(clips)
        self.seconds.append(time.perf_counter() - begin)
        return outputs


def busy(engine: Engine, paths: Sequence[Path]) -> float:
    """Return the share of the time of a study in which the network computed, in percent."""
    watched = Watched(engine=engine)
    begin = time.perf_counter()
    for verdict in analyse_files(paths, cast(Engine, watched)):
        assert isinstance(verdict, AnalysedLoop)
    return 100.0 * sum(watched.seconds) / (time.perf_counter() - begin)


def in_turn(engine: Engine, paths: Sequence[Path]) -> list[LoopOutputs]:
    """Return what the engine says of the loops, each decoded when the one before has its answer."""
    return [engine.look_at(load_clips(path, engine.spec)) for path in paths]


def outputs_of(verdicts: Sequence[Verdict]) -> list[LoopOutputs]:
    """Return the answers."""
    return [verdict.outputs for verdict in verdicts if isinstance(verdict, AnalysedLoop)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What was seen of a worker's process."""

    loading: float
    """Seconds that the ensemble took to load."""
    first: float
    """Seconds from its start to its first answer."""
    resident: int
    """Bytes at the end."""
    most: int
    """Bytes at most."""


def start(path: Path, loops: Sequence[Path]) -> Started:
    """Start a process that analyses the loops."""
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", START, path, *loops], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as process:  # fmt: skip
        assert process.stdout is not None
        loading = json.loads(process.stdout.readline() or "null")
        first = time.perf_counter() - begin
        memory = json.loads(process.stdout.readline() or "null")
    same_work(memory is not None, "a worker's process did not get through")
    return Started(loading=loading, first=first, resident=memory["VmRSS"], most=memory["VmHWM"])


def measure_starts(name: str, path: Path, loops: Sequence[Path], number: int, results: Results) -> None:
    """Add the rows of new processes."""
    weights = sum(file.stat().st_size for file in path.rglob(bundle.WEIGHTS))
    started = [start(path, loops) for _ in range(number)]
    results.measure(
        f"{name}: from a worker's start to its first answer, in the times of loading it",
        [one.first / one.loading for one in started], unit="times", at_most=3.0,
    )  # fmt: skip
    results.measure(
        f"{name}: memory beyond its {weights / 1e6:.0f} MB of weights, after {len(loops)} loops",
        [(one.resident - weights) / 1e9 for one in started], unit="GB", at_most=1.5,
    )  # fmt: skip
    results.measure(
        f"{name}: the same at most, while it loaded and after", [(one.most - weights) / 1e9 for one in started],
        unit="GB",
    )  # fmt: skip


def main() -> None:
    """Measure one after the other."""
    options_of = parser(__doc__)
    options_of.add_argument("--loops", type=int, default=30)
    options_of.add_argument("--full-size-loops", type=int, default=6)
    options_of.add_argument("--pairs", type=int, default=2)
    options = options_of.parse_args()
    results = Results(options.results)
    with tempfile.TemporaryDirectory() as folder:
        pair = write_loops(Path(folder))
        engine = Engine(ensemble=Ensemble.load(SHIPPED))
        study = pair * (options.loops // 2)
        same = outputs_of(list(analyse_files(pair, engine))) == in_turn(engine, pair)
        same_work(same, "decoded beside the network or before it, a loop has other numbers")
        results.compare(
            f"{len(study)} loops, the shipped ensemble, decoded beside the network",
            Side(name="ours", measure=seconds(lambda: list(analyse_files(study, engine)))),
            Side(name="the same, one after the other", measure=seconds(lambda: in_turn(engine, study))),
            unit="s",
            pairs=options.pairs,
        )
        results.measure(
            f"{len(study)} loops, the shipped ensemble: the network computed",
            [busy(engine, study) for _ in range(options.pairs)], unit="% of the time",
        )  # fmt: skip
        measure_starts("the shipped ensemble", SHIPPED, pair, options.pairs, results)
        path = write_full_size(Path(folder) / "ensemble")
        full_size, study = Engine(ensemble=Ensemble.load(path)), pair * (options.full_size_loops // 2)
        results.measure(
            f"{len(study)} loops, a full-size network: it computed",
            [busy(full_size, study)], unit="% of the time", at_least=90.0,
        )  # fmt: skip
        del full_size
        measure_starts("a full-size network", path, pair, 2, results)


if __name__ == "__main__":
    main()
