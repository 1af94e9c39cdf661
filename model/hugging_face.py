"""transformers' names of a VideoMAE's weights, and ours: there and back, bit for bit.

Ours joins the projections to queries, keys and values; theirs keeps three. No key has a bias.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from model.errors import WeightsError

BiasNames = Literal["new", "old"]
"""How the biases of queries and values are named: since transformers 5 `query.bias`, before `q_bias`."""

OUR_BLOCK = re.compile(
    r"(encoder|decoder)\.blocks\.(\d+)\."
    r"((?:norm[12]|attn\.proj|mlp\.fc[12])\.(?:weight|bias)|attn\.(?:q_bias|v_bias|qkv\.weight))"
)
"""A key of a block in our names: its side, its number, and the rest."""

# Inside a block of the encoder or the decoder.
_BLOCK = {
    "attention.output.dense.weight": "attn.proj.weight",
    "attention.output.dense.bias": "attn.proj.bias",
    "intermediate.dense.weight": "mlp.fc1.weight",
    "intermediate.dense.bias": "mlp.fc1.bias",
    "output.dense.weight": "mlp.fc2.weight",
    "output.dense.bias": "mlp.fc2.bias",
    "layernorm_before.weight": "norm1.weight",
    "layernorm_before.bias": "norm1.bias",
    "layernorm_after.weight": "norm2.weight",
    "layernorm_after.bias": "norm2.bias",
}
_BIASES: dict[BiasNames, dict[str, str]] = {
    "new": {"attention.attention.query.bias": "attn.q_bias", "attention.attention.value.bias": "attn.v_bias"},
    "old": {"attention.attention.q_bias": "attn.q_bias", "attention.attention.v_bias": "attn.v_bias"},
}
_INNER = _BLOCK | _BIASES["new"] | _BIASES["old"]
_INNER_OF_OURS: dict[BiasNames, dict[str, str]] = {
    names: {ours: theirs for theirs, ours in (_BLOCK | biases).items()} for names, biases in _BIASES.items()
}
_THIRDS = ("query", "key", "value")
_QKV = re.compile(r"attention\.attention\.(query|key|value)\.weight")
_LAYER = re.compile(r"(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)")
_PLAIN = {
    "embeddings.patch_embeddings.projection.weight": "encoder.patch_embed.weight",
    "embeddings.patch_embeddings.projection.bias": "encoder.patch_embed.bias",
    "layernorm.weight": "encoder.norm.weight",
    "layernorm.bias": "encoder.norm.bias",
}
_PLAIN_OF_OURS = {ours: theirs for theirs, ours in _PLAIN.items()}
_SAME = re.compile(r"(encoder_to_decoder\.weight|mask_token|decoder\.(norm|head)\.(weight|bias))")
_IGNORED = re.compile(r"(fc_norm|classifier)\.|(embeddings|decoder)\.position_embeddings$")


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a VideoMAE of transformers, with or without decoder or classifier, in our names.

    Raises:
        WeightsError: a key is unknown, a third of a projection is missing, or something is said twice.
    """
    named: list[tuple[str, str, Tensor]] = []
    thirds: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in state.items():
        name = key.removeprefix("videomae.")
        layer = _LAYER.fullmatch(name)
        third = _QKV.fullmatch(layer[3]) if layer is not None else None
        if layer is not None and third is not None:
            thirds.setdefault(f"{key.removesuffix(third[0])}attention.attention.", {})[third[1]] = value
        elif layer is not None and layer[3] in _INNER:
            named.append((_block(layer) + _INNER[layer[3]], key, value))
        elif name in _PLAIN:
            named.append((_PLAIN[name], key, value))
        elif _SAME.fullmatch(name):
            named.append((name, key, value))
        elif not _IGNORED.match(name):
            unknown.append(key)
    if unknown:
        raise WeightsError(f"no key of Hugging Face's VideoMAE: {sorted(unknown)}")
    missing = [f"{road}{third}.weight" for road, own in thirds.items() for third in _THIRDS if third not in own]
    if missing:
        raise WeightsError(f"missing: {sorted(missing)}")
    for road, own in thirds.items():
        if len({part.shape for part in own.values()}) > 1:
            raise WeightsError(f"of different shapes: {road}{{query,key,value}}.weight")
        layer = _LAYER.fullmatch(road.removeprefix("videomae."))
        assert layer is not None
        named.append((f"{_block(layer)}attn.qkv.weight", road, torch.cat([own[third] for third in _THIRDS])))
    return without_doubles(named)


def to_theirs(state: Mapping[str, Tensor], bias_names: BiasNames) -> dict[str, Tensor]:
    """Return encoder and decoder, in our names, as VideoMAEForPreTraining names them, bit for bit."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        block = OUR_BLOCK.fullmatch(key)
        if block is not None:
            side = "videomae.encoder.layer" if block[1] == "encoder" else "decoder.decoder_layers"
            layer = f"{side}.{block[2]}."
            if block[3] == "attn.qkv.weight":
                for third, part in zip(_THIRDS, value.chunk(3), strict=True):
                    named[f"{layer}attention.attention.{third}.weight"] = part.clone()  # files share no storage
            else:
                named[layer + _INNER_OF_OURS[bias_names][block[3]]] = value
        elif key in _PLAIN_OF_OURS:
            named[f"videomae.{_PLAIN_OF_OURS[key]}"] = value
        else:
            assert _SAME.fullmatch(key), key
            named[key] = value
    return named


def without_doubles(entries: Iterable[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
    """Return name -> tensor of (name, key it came from, tensor).

    Raises:
        WeightsError: two keys give one name; whichever came last would win without a word.
    """
    origins: dict[str, str] = {}
    state = {}
    for name, key, value in entries:
        if name in origins:
            raise WeightsError(f"both say the same: {sorted((origins[name], key))}")
        origins[name] = key
        state[name] = value
    return state


def _block(layer: re.Match[str]) -> str:
    """Return our prefix of the block that a match of `_LAYER` lies in."""
    return f"{'encoder' if layer[1] == 'encoder.layer' else 'decoder'}.blocks.{layer[2]}."
