"""Weights to start from: a run's, or a file of `trainer import-weights`, whose recipe must be that of the new run."""

import json
from pathlib import Path

from torch import nn

from model.clip.spec import ClipSpec
from model.errors import WeightsError
from model.net.echo_vision import NetConfig
from model.weights import load_strictly
from trainer.errors import RunError
from trainer.run import read_weights, weights_file

_ENCODER_KEYS = ("frames", "size", "tubelet", "patch", "dim", "depth", "heads", "mlp_dim", "eps", "final_norm")
_CLIP_KEYS = ("mean", "std")


def load_encoder(encoder: nn.Module, source: Path, net: NetConfig, clip: ClipSpec) -> None:
    """Fill an encoder from a run or a file.

    Raises:
        RunError: it is of another architecture, or was trained on pixels of another normalisation.
    """
    _load(encoder, source, net, clip, "encoder.")


def load_whole(network: nn.Module, source: Path, net: NetConfig, clip: ClipSpec) -> None:
    """Fill a pre-training network, decoder and all.

    Raises:
        RunError: as above.
    """
    _load(network, source, net, clip, "")


def _load(module: nn.Module, source: Path, net: NetConfig, clip: ClipSpec, prefix: str) -> None:
    file = weights_file(source)
    state, metadata = read_weights(file)
    try:
        recipe = json.loads(metadata["config"])
        saved_net, saved_clip = recipe["net"], recipe["clip"]
    except (KeyError, ValueError) as error:
        raise RunError(
            f"{file}: says nothing about its recipe: give a run, or a file of trainer import-weights"
        ) from error
    for name, saved, given, keys in (
        ("net", saved_net, net.model_dump(mode="json"), _ENCODER_KEYS),
        ("clip", saved_clip, clip.model_dump(mode="json"), _CLIP_KEYS),
    ):
        for key in keys:
            if saved[key] != given[key]:
                raise RunError(
                    f"{file}: was trained with {name}.{key} = {json.dumps(saved[key])}, this run has"
                    f" {json.dumps(given[key])}: --set {name}.{key}='{json.dumps(saved[key])}'"
                )
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        load_strictly(module, own)
    except WeightsError as error:
        raise RunError(f"{file}: does not fit: {error}") from error
