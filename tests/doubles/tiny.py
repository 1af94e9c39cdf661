"""Tiny networks, whole bundles and ensembles on disk: quick on any machine, and their numbers mean nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from model import bundle, ensemble
from model.bundle import Bundle
from model.clip.spec import ClipSpec
from model.ensemble import EnsembleManifest, Member
from model.net.echo_vision import EchoVision, NetConfig
from model.tasks import CATALOGUE, Task, View

Views = Mapping[Task, Sequence[View]]

ALL_VIEWS: Views = {task: tuple(View) for task in Task}


def tiny_net(**changes: object) -> NetConfig:
    """Return the network of 2 x 2 x 2 tokens that is quick on any machine."""
    small = NetConfig.small().model_dump()
    tiny = {"frames": 4, "size": 32, "dim": 24, "depth": 2, "heads": 2, "mlp_dim": 48, "stf_attention_dim": 16}
    return NetConfig.model_validate(small | tiny | {"head_hidden": (8, 4)} | changes)


def tiny_network(net: NetConfig, views: Views, seed: int) -> EchoVision:
    """Return a random network in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EchoVision(net, {task.value: CATALOGUE[task].num_outputs for task in views}).eval()


def make_bundle(
    path: Path,
    seed: int = 0,
    views: Views = ALL_VIEWS,
    clip: ClipSpec | None = None,
    weights_dtype: str = "float32",
) -> Bundle:
    """Write a tiny bundle and return it as loaded."""
    spec = clip or ClipSpec(num_frames=4, size=32)
    net = tiny_net(frames=spec.num_frames, size=spec.size)
    return bundle.save(
        path,
        tiny_network(net, views, seed),
        net=net,
        clip=spec,
        views=views,
        data_digests={"noise": "0" * 64},
        code_version="test",
        seed=seed,
        weights_dtype=weights_dtype,  # type: ignore[arg-type]  # a test may say anything
    )


def make_ensemble(
    path: Path,
    views: Sequence[Views] = (ALL_VIEWS, ALL_VIEWS),
    *,
    clip: ClipSpec | None = None,
    view_threshold: float = 0.5,
) -> Path:
    """Write a tiny ensemble into a folder: a bundle for each of `views`."""
    path.mkdir()
    made = {f"member-{seed}": make_bundle(path / f"member-{seed}", seed, one, clip) for seed, one in enumerate(views)}
    manifest = EnsembleManifest(
        name="tiny",
        version="1.0",
        statement="untrained weights: numbers have no meaning",
        bundles=tuple(Member(name=name, sha256=one.digest) for name, one in made.items()),
        view_threshold=view_threshold,
    )
    ensemble.save(path, manifest)
    return path
