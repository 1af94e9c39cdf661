"""Checkpoints of others, by name: from their keys to ours, whole or not at all.

Families: the official VideoMAE (`encoder.blocks.0.attn.qkv.weight`), Hugging Face's (`videomae.encoder.layer.0...`,
with the bias names of before and after transformers 5), Echo-Vision-FM's pre-training (Hugging Face's names, perhaps
behind `module.`) and its fine-tuned networks (`pretrained_encoder.`, `stff_net.`, `regressor.` or `classifier.`).

A released classifier's logit of `lvef_class` means PRESERVED; ours means that the LVEF is under 50 %: who puts such a
head into a bundle turns its sign.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from model.errors import WeightsError


class Family(StrEnum):
    """Where a checkpoint comes from."""

    OFFICIAL = "official"
    """MCG-NJU's VideoMAE, pre-trained or fine-tuned; CC BY-NC 4.0: not for commercial use."""
    HUGGING_FACE = "hugging_face"
    """transformers' VideoMAE; Echo-Vision-FM's pre-training is saved by it."""
    ECHO_VISION = "echo_vision"
    """A fine-tuned Echo-Vision-FM; runs with stf_layout `released`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A checkpoint in our names."""

    family: Family
    state: dict[str, Tensor]
    """`encoder.*`, and what it has of `encoder_to_decoder.*`, `mask_token`, `decoder.*`, `stf.*` and `head.*`."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below `prefix`, without it."""
        return {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}


def import_state(state: Mapping[str, Tensor]) -> Imported:
    """Return a checkpoint's tensors under our names.

    Raises:
        WeightsError: it is of no known family, or holds a key that its family does not have.
    """
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("pretrained_encoder.") for key in plain):
        return Imported(family=Family.ECHO_VISION, state=_echo_vision(plain))
    if any(key.startswith("videomae.") or key.startswith("encoder.layer.") for key in plain):
        return Imported(family=Family.HUGGING_FACE, state=_hugging_face(plain))
    if any(re.match(r"(encoder\.)?blocks\.0\.attn\.", key) for key in plain):
        return Imported(family=Family.OFFICIAL, state=_official(plain))
    raise WeightsError(f"no VideoMAE or Echo-Vision-FM checkpoint: it begins with {sorted(plain)[:3]}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill a module; every parameter is given, and nothing else.

    Raises:
        WeightsError: the message lists the keys that are missing, too many, or of another shape.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unknown or shapes:
        raise WeightsError(f"missing: {missing}; too many: {unknown}; of another shape: {shapes}")
    module.load_state_dict(state)


_OFFICIAL_RENAMES = ((re.compile(r"\bpatch_embed\.proj\."), "patch_embed."),)
_OFFICIAL_IGNORED = re.compile(r"(fc_norm|head)\.")  # of a classifier that was fine-tuned on videos of people


def _official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    is_pretraining = any(key.startswith("encoder.") for key in state)
    renamed = {}
    for key, value in state.items():
        if not is_pretraining and _OFFICIAL_IGNORED.match(key):
            continue
        name = key if is_pretraining else f"encoder.{key}"
        for pattern, ours in _OFFICIAL_RENAMES:
            name = pattern.sub(ours, name)
        renamed[name] = value
    return _known(renamed)


# Inside a block of the encoder or the decoder.
_HF_BLOCK = {
    "attention.attention.q_bias": "attn.q_bias",
    "attention.attention.v_bias": "attn.v_bias",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
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
_HF_QKV = re.compile(r"attention\.attention\.(query|key|value)\.weight")
_HF_LAYER = re.compile(r"(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)")
_HF_PLAIN = {
    "embeddings.patch_embeddings.projection.weight": "encoder.patch_embed.weight",
    "embeddings.patch_embeddings.projection.bias": "encoder.patch_embed.bias",
    "layernorm.weight": "encoder.norm.weight",
    "layernorm.bias": "encoder.norm.bias",
}
_HF_SAME = re.compile(r"(encoder_to_decoder\.weight|mask_token|decoder\.(norm|head)\.(weight|bias))")
_HF_IGNORED = re.compile(r"(fc_norm|classifier)\.|(embeddings|decoder)\.position_embeddings$")


def _hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in state.items():
        name = key.removeprefix("videomae.")
        layer = _HF_LAYER.fullmatch(name)
        if layer is not None:
            side = "encoder" if layer[1] == "encoder.layer" else "decoder"
            block = f"{side}.blocks.{layer[2]}."
            third = _HF_QKV.fullmatch(layer[3])
            if third is not None:
                thirds.setdefault(f"{block}attn.qkv.weight", {})[third[1]] = value
            elif layer[3] in _HF_BLOCK:
                renamed[block + _HF_BLOCK[layer[3]]] = value
            else:
                unknown.append(key)
        elif name in _HF_PLAIN:
            renamed[_HF_PLAIN[name]] = value
        elif _HF_SAME.fullmatch(name):
            renamed[name] = value
        elif not _HF_IGNORED.match(name):
            unknown.append(key)
    for name, parts in thirds.items():
        if parts.keys() != {"query", "key", "value"}:
            unknown.append(name)
            continue
        renamed[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    if unknown:
        raise WeightsError(f"no key of Hugging Face's VideoMAE: {sorted(unknown)}")
    return renamed


_EVF_STF = (
    ("residual_stack_all.residual_stack.0.residual_block.", "joint_residual."),
    ("residual_stack_spatial.residual_stack.0.residual_block.", "spatial_residual."),
    ("gated_attention_all.", "joint_attention."),
    ("gated_attention_temporal.", "temporal_attention."),
    ("conv_spatial.", "spatial_conv."),
    ("fc_pe.", "frame_mlp."),
)
_EVF_HEAD = re.compile(r"(?:regressor|classifier)\.head\.(\d)\.(\d)\.(.+)")


def _echo_vision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoder = {
        key.removeprefix("pretrained_encoder."): value
        for key, value in state.items()
        if key.startswith("pretrained_encoder.")
    }
    renamed = _hugging_face(encoder)
    unknown = []
    for key, value in state.items():
        if key.startswith("pretrained_encoder.") or key.endswith("positional_encoding.inv_freq"):
            continue
        name = _echo_vision_name(key)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = value
    if unknown:
        raise WeightsError(f"no key of a fine-tuned Echo-Vision-FM: {sorted(unknown)}")
    return renamed


def _echo_vision_name(key: str) -> str | None:
    if key.startswith("stff_net."):
        inner = key.removeprefix("stff_net.")
        for theirs, ours in _EVF_STF:
            if inner.startswith(theirs):
                return f"stf.{ours}{inner.removeprefix(theirs)}"
        return None
    match = _EVF_HEAD.fullmatch(key)
    if match is None:
        return None
    # Theirs: layers of (linear, normalisation, ReLU), then the last linear. Ours: the same, flat.
    return f"head.{3 * int(match[1]) + int(match[2])}.{match[3]}"


_OURS = re.compile(
    r"(encoder|decoder)\.blocks\.\d+\.(norm[12]|attn\.proj|mlp\.fc[12])\.(weight|bias)"
    r"|(encoder|decoder)\.blocks\.\d+\.attn\.(q_bias|v_bias|qkv\.weight)"
    r"|encoder\.(patch_embed|norm)\.(weight|bias)"
    r"|encoder_to_decoder\.weight|mask_token|decoder\.(norm|head)\.(weight|bias)"
)


def _known(state: dict[str, Tensor]) -> dict[str, Tensor]:
    unknown = [key for key in state if not _OURS.fullmatch(key)]
    if unknown:
        raise WeightsError(f"no key of VideoMAE: {sorted(unknown)}")
    return state
