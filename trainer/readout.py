"""The shipped ensemble: untrained encoders whose last linear layers are fitted to phantoms.

Nothing is trained by gradients: encoders and pools stay random, batch norms take their statistics from the phantoms,
and the last Linear of each head is one ridge regression. That is enough for the view gate to work on phantoms and for
the demo to show numbers; it is no model of any heart. The same seed gives the same weights on the same machine.

Legend: N samples, F features, O outputs, B clips, T frames, C = 3 RGB, H, W pixels, L tokens, D width.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from model import bundle, ensemble
from model.aggregate import aggregate, stills_wanted
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import make_clip
from model.ensemble import Ensemble, EnsembleManifest, Member, stack_stills
from model.net.echo_vision import Branch, EchoVision, NetConfig
from model.phantom.heart import Heart, random_heart
from model.phantom.scan import random_screen, render
from model.prediction import Loop, encode_target
from model.tasks import APICAL, CATALOGUE, VALVE, Grade, Kind, Task, View

log = logging.getLogger(__name__)

NAME = "phantom"
VERSION = "0.1.0"
STATEMENT = "untrained weights: numbers have no meaning"
NUM_MEMBERS = 3
VIEW_THRESHOLD = 0.5
_BATCH = 32
_VALVE_VIEWS = tuple(view for view in View if view in VALVE)  # the order of a stack
_PENALTIES = tuple(10.0**power for power in range(-5, 3))
_SCALES = tuple(float(scale) for scale in np.geomspace(1.0, 60.0, 40))

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one pass of the network sees, and what is true of it."""

    clip_CTHW: Tensor
    indices_T: Tensor
    targets: Mapping[Task, float]
    """Raw target of a regression, or the number of the true class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A phantom study."""

    heart: Heart
    loops: Mapping[View, Sample]
    """One loop of each view."""
    stills: Mapping[View, Tensor]
    """The middle sampled frame of each loop, (3, S, S)."""
    stack: Sample
    """The stills of one to four of the views that show the aortic valve or the left ventricle."""


def draw(case: int, seed: int, spec: ClipSpec) -> Case:
    """Return a study that depends on its number and the seed alone."""
    rng = np.random.default_rng([seed, case])
    heart = random_heart(rng)
    loops, stills = {}, {}
    for view in View:
        num_frames = int(rng.integers(16, 49))
        indices = frame_indices(num_frames, spec.num_frames)
        frames_THWC = render(
            heart,
            view,
            num_frames=num_frames,
            frame_time_ms=float(rng.uniform(25.0, 50.0)),
            rng=rng,
            screen=random_screen(rng, depth_mm=float(rng.uniform(150.0, 170.0))),
        )[list(indices)]
        targets = {Task.VIEW: float(list(View).index(view))}
        if view in APICAL:
            targets |= {
                Task.LVEF: encode_target(Task.LVEF, heart.lvef_percent),
                Task.LVEDV: encode_target(Task.LVEDV, heart.edv_ml),
                Task.LVESV: encode_target(Task.LVESV, heart.esv_ml),
                Task.LVEF_REDUCED: float(heart.lvef_percent < 50.0),
            }
        clip_CTHW = make_clip(frames_THWC, spec)
        loops[view] = Sample(clip_CTHW=clip_CTHW, indices_T=torch.tensor(indices), targets=targets)
        stills[view] = clip_CTHW[:, spec.num_frames // 2]
    kept = rng.permutation(len(_VALVE_VIEWS))[: int(rng.integers(1, len(_VALVE_VIEWS) + 1))]
    stack_CTHW, positions_T = stack_stills([stills[_VALVE_VIEWS[index]] for index in sorted(kept)], spec)
    grade = {Task.AORTIC_STENOSIS: float(heart.stenosis)}
    stack = Sample(clip_CTHW=stack_CTHW, indices_T=positions_T, targets=grade)
    return Case(heart=heart, loops=loops, stills=stills, stack=stack)


def ridge(features_NF: Array, targets_NO: Array) -> tuple[Array, Array, Array]:
    """Return weights (O, F), biases (O,) and leave-one-out predictions (N, O) at the penalty that predicts best."""
    mean_F, scale_F = features_NF.mean(axis=0), features_NF.std(axis=0) + 1e-9
    design = (features_NF - mean_F) / scale_F
    mean_O = targets_NO.mean(axis=0)
    num = len(design)
    best: tuple[float, Array, Array] | None = None
    for penalty in _PENALTIES:
        inverse = np.linalg.inv(design.T @ design + penalty * num * np.eye(design.shape[1]))
        solution = inverse @ design.T @ (targets_NO - mean_O)
        leverage = np.einsum("nf,fg,ng->n", design, inverse, design) + 1.0 / num
        residual = (targets_NO - mean_O - design @ solution) / (1.0 - leverage)[:, None]
        error = float(np.mean(residual**2))
        if best is None or error < best[0]:
            best = (error, solution, targets_NO - residual)
    assert best is not None
    weights_OF = (best[1] / scale_F[:, None]).T
    return weights_OF, mean_O - weights_OF @ mean_F, best[2]


def logit_scale(scores_NO: Array, labels_N: NDArray[np.int64]) -> float:
    """Return the factor that turns scores of one-hot regressions into the most truthful logits."""

    def surprise(scale: float) -> float:
        logits = scores_NO * scale
        log_total = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
        return float(np.mean(log_total - logits[np.arange(len(logits)), labels_N]))

    return min(_SCALES, key=surprise)


def readout(task: Task, features_NF: Array, truth_N: Array) -> tuple[Array, Array]:
    """Return weights (O, F) and biases (O,) of a task's last Linear.

    Args:
        task: the task.
        features_NF: what comes into that layer.
        truth_N: raw targets of a regression, else the number of the true class.
    """
    info = CATALOGUE[task]
    if info.kind is Kind.REGRESSION:
        return ridge(features_NF, truth_N[:, None])[:2]
    labels_N = truth_N.astype(np.int64)
    one_hot = np.eye(max(info.num_outputs, 2))[labels_N]
    weights_OF, biases_O, unseen_NO = ridge(features_NF, one_hot)
    scale = logit_scale(unseen_NO, labels_N)
    if info.kind is Kind.BINARY:  # one logit: that of the positive class over that of the negative
        weights_OF, biases_O = weights_OF[1:] - weights_OF[:1], biases_O[1:] - biases_O[:1]
    return weights_OF * scale, biases_O * scale


def calibrate(module: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Set the statistics of every batch norm in `module` to the mean over some passes, and end in evaluation mode."""
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a plain mean over the passes
        norm.train()
    for run in passes:
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def fit(network: EchoVision, tokens: Sequence[Tensor], samples: Sequence[Sample]) -> None:
    """Fit batch norms and the last Linear of every branch; the encoder and the pools stay as they are.

    Args:
        network: changed in place; in evaluation mode before and after.
        tokens: each sample's tokens (L, D) from this network's encoder.
        samples: each speaks for the tasks among its targets.
    """
    for name, module in network.branches.items():
        task = Task(name)
        branch = cast(Branch, module)
        layers = list(branch.head)
        own = [index for index, sample in enumerate(samples) if task in sample.targets]

        def features(indices: Sequence[int], branch: Branch = branch, layers: list[nn.Module] = layers) -> Tensor:
            tokens_BLD = torch.stack([tokens[index] for index in indices])
            pooled = branch.features(tokens_BLD, torch.stack([samples[index].indices_T for index in indices]))
            hidden: Tensor = nn.Sequential(*layers[:-1])(pooled)
            return hidden

        # Every batch has about the same views in it, whatever the order of the samples.
        num_batches = max(1, len(own) // _BATCH)
        batches = [own[start::num_batches] for start in range(num_batches)]
        calibrate(branch, [partial(features, batch) for batch in batches])
        features_NF = torch.cat([features([index]) for index in own]).double().numpy()
        truth_N = np.array([samples[index].targets[task] for index in own])
        weights_OF, biases_O = readout(task, features_NF, truth_N)
        layers[-1].load_state_dict({"weight": torch.from_numpy(weights_OF), "bias": torch.from_numpy(biases_O)})
        log.info("fitted %s on %d samples", task, len(own))


def make(out: Path, num_cases: int, seed: int) -> None:
    """Write the ensemble to `out`, whole or not at all.

    Raises:
        BundleError: `out` exists.
    """
    net, spec = NetConfig.small().model_copy(update={"size": 224, "share": "encoder"}), ClipSpec()
    outputs = {task.value: info.num_outputs for task, info in CATALOGUE.items()}
    networks = []
    for member in range(NUM_MEMBERS):
        torch.manual_seed(seed + member)
        networks.append(EchoVision(net, outputs).eval())
    digest = hashlib.sha256()
    samples: list[Sample] = []
    tokens: list[list[Tensor]] = [[] for _ in networks]
    for case in range(num_cases):
        study = draw(case, seed, spec)
        for sample in (*study.loops.values(), study.stack):
            digest.update(sample.clip_CTHW.numpy().tobytes())
            with torch.no_grad():
                for own, network in zip(tokens, networks, strict=True):
                    own.append(network.encode(sample.clip_CTHW[None])[0])
            samples.append(replace(sample, clip_CTHW=torch.empty(0)))  # all of them would not fit into memory
    for own, network in zip(tokens, networks, strict=True):
        fit(network, own, samples)

    def write(folder: Path) -> None:
        members = []
        for number, network in enumerate(networks):
            name = f"member-{number}"
            made = bundle.save(
                folder / name,
                network,
                net=net,
                clip=spec,
                views={task: tuple(sorted(info.views)) or tuple(View) for task, info in CATALOGUE.items()},
                data_digests={"phantom": digest.hexdigest()},
                code_version=version("echo-ai-node"),
                seed=seed + number,
                weights_dtype="float16",
            )
            members.append(Member(name=name, sha256=made.digest))
        ensemble.save(
            folder,
            EnsembleManifest(
                name=NAME,
                version=VERSION,
                statement=STATEMENT,
                bundles=tuple(members),
                view_threshold=VIEW_THRESHOLD,
            ),
        )

    bundle.write_folder(out, write)


def measure(shipped: Ensemble, cases: Iterable[int], seed: int) -> dict[str, float | None]:
    """Return how the ensemble does on phantoms: its gate by loop, its tasks by study, as the node would report them."""
    recognised: list[bool] = []
    right: list[bool] = []
    errors: dict[Task, list[float]] = {task: [] for task in (Task.LVEF, Task.LVEDV, Task.LVESV)}
    truth: dict[Task, list[float]] = {task: [] for task in errors}
    verdicts: dict[Task, list[bool]] = {Task.LVEF_REDUCED: [], Task.AORTIC_STENOSIS: []}
    num_cases = 0
    for case in cases:
        study = draw(case, seed, shipped.spec)
        num_cases += 1
        loops = []
        for view, sample in study.loops.items():
            (outputs,) = shipped.predict_loops(sample.clip_CTHW[None], sample.indices_T[None])
            loops.append(Loop(key=view.value, outputs=outputs))
        wanted = stills_wanted(loops, shipped.info)
        stack = stack_stills([study.stills[View(key)] for key in wanted], shipped.spec) if wanted else None
        prediction = aggregate(loops, shipped.predict_study(*stack) if stack else None, shipped.info)
        recognised += [loop.view is not None for loop in prediction.loops]
        right += [loop.view == loop.key for loop in prediction.loops if loop.view is not None]
        heart = study.heart
        known = {Task.LVEF: heart.lvef_percent, Task.LVEDV: heart.edv_ml, Task.LVESV: heart.esv_ml}
        for result in prediction.results:
            if result.task in known:
                truth[result.task].append(known[result.task])
                errors[result.task].append(float(result.value) - known[result.task])
            elif result.task is Task.LVEF_REDUCED:
                verdicts[result.task].append(result.value == (heart.lvef_percent < 50.0))
            else:
                verdicts[result.task].append(result.value == list(Grade)[heart.stenosis])
    found: dict[str, float | None] = {
        "studies": float(num_cases),
        "loops_recognised": _mean(recognised),
        "views_right_of_recognised": _mean(right),
    }
    for task, differences in errors.items():
        found[f"{task}_answered"] = len(differences) / num_cases
        found[f"{task}_mae"] = _mean([abs(difference) for difference in differences])
        found[f"{task}_mae_of_guessing_the_mean"] = _mean(
            [abs(one - float(np.mean(truth[task]))) for one in truth[task]]
        )
    for task, agreed in verdicts.items():
        found[f"{task}_answered"] = len(agreed) / num_cases
        found[f"{task}_right_of_answered"] = _mean(agreed)
    return found


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean to three places, None of nothing."""
    return round(float(np.mean(values)), 3) if values else None


def main(
    out: Annotated[Path, typer.Option(help="Folder of the ensemble; must not exist.")] = ensemble.SHIPPED,
    cases: Annotated[int, typer.Option(help="Phantom hearts to fit on.", min=10)] = 80,
    seed: Annotated[int, typer.Option(help="Seed of hearts and networks.")] = 1,
    fresh_cases: Annotated[int, typer.Option(help="Other phantom hearts to measure on.", min=0)] = 24,
) -> None:
    """Make the ensemble that the package ships, and print how it does on phantoms it has not seen."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    make(out, cases, seed)
    if fresh_cases:
        print(json.dumps(measure(Ensemble.load(out), range(cases, cases + fresh_cases), seed), indent=1))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
