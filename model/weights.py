"""Checkpoints of others, by name: from their keys to ours and back, whole or not at all.

Families: the official VideoMAE (`encoder.blocks.0.attn.qkv.weight`), Hugging Face's (`videomae.encoder.layer.0...`,
with the bias names of before and after transformers 5), Echo-Vision-FM's pre-training (Hugging Face's names, perhaps
behind `module.`) and its fine-tuned networks (`pretrained_encoder.`, `stff_net.`, `regressor.` or `classifier.`).

A released classifier's logit of `lvef_class` means PRESERVED; ours means that the LVEF is under 50 %: who puts such a
head into a bundle turns its sign (`echo_vision_branch`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from model import hugging_face
from model.errors import WeightsError
from model.hugging_face import OUR_BLOCK, BiasNames, without_doubles
from model.tasks import CATALOGUE, Task


class Family(StrEnum):
    """Where a checkpoint comes from."""

    OFFICIAL = "official"
    """MCG-NJU's VideoMAE, pre-trained or fine-tuned; CC BY-NC 4.0: not for commercial use."""
    HUGGING_FACE = "hugging_face"
    """transformers' VideoMAE; Echo-Vision-FM's pre-training is saved by it."""
    ECHO_VISION = "echo_vision"
    """A fine-tuned Echo-Vision-FM; runs with stf_layout `released`."""
    OURS = "ours"
    """Our own names: imported before, or trained here."""


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
        WeightsError: it is of no known family, holds a key that its family does not have, or says something twice.
    """
    plain = without_doubles((key.removeprefix("module."), key, value) for key, value in state.items())
    if "encoder.patch_embed.weight" in plain:
        _known({key: value for key, value in plain.items() if not _OUR_TASKS.fullmatch(key)})
        return Imported(family=Family.OURS, state=plain)
    if any(key.startswith("pretrained_encoder.") for key in plain):
        return Imported(family=Family.ECHO_VISION, state=_echo_vision(plain))
    if any(key.startswith("videomae.") or key.startswith("encoder.layer.") for key in plain):
        return Imported(family=Family.HUGGING_FACE, state=hugging_face.to_ours(plain))
    if any(re.match(r"(encoder\.)?blocks\.0\.attn\.", key) for key in plain):
        return Imported(family=Family.OFFICIAL, state=_official(plain))
    raise WeightsError(f"no VideoMAE or Echo-Vision-FM checkpoint: it begins with {sorted(plain)[:3]}")


def to_hugging_face(state: Mapping[str, Tensor], *, bias_names: BiasNames = "new") -> dict[str, Tensor]:
    """Return encoder and decoder under the names of transformers' VideoMAEForPreTraining, bit for bit.

    Args:
        state: in our names; pools and heads of tasks, for which transformers has no place, are left out.
        bias_names: of which transformers.

    Raises:
        WeightsError: it holds a key that is none of ours.
    """
    kept = {key: value for key, value in state.items() if not _OUR_TASKS.fullmatch(key)}
    return hugging_face.to_theirs(_known(kept), bias_names)


def echo_vision_branch(imported: Imported, task: Task) -> dict[str, Tensor]:
    """Return pool and head of a fine-tuned Echo-Vision-FM as the state of our `Branch` of `task`.

    A released classifier of the LVEF knows the preserved class; its sign is turned, so that it knows the reduced one.
    Volumes must be those of an EchoNet head, which answers in ln(mL) as ours do; a CAMUS head's mL / 100 is not known.

    Raises:
        WeightsError: it is no fine-tuned network, or its head has another number of outputs than the task.
    """
    if imported.family is not Family.ECHO_VISION:
        raise WeightsError(f"a checkpoint of family {imported.family} has no head of a task")
    branch = {key: value for key, value in imported.state.items() if key.startswith(("stf.", "head."))}
    layers = [int(key.split(".")[1]) for key in branch if key.startswith("head.")]
    last = [f"head.{max(layers, default=0)}.{name}" for name in ("weight", "bias")]
    missing = sorted(set(last) - branch.keys())
    if missing:
        raise WeightsError(f"missing: {missing}")
    outputs = len(branch[last[1]])
    if outputs != CATALOGUE[task].num_outputs:
        raise WeightsError(f"its head has {outputs} outputs, {task} has {CATALOGUE[task].num_outputs}")
    if task is Task.LVEF_REDUCED:
        branch |= {key: -branch[key] for key in last}
    return branch


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the weights themselves say of the architecture; the number of attention heads is not among it."""

    dim: int
    depth: int
    mlp_dim: int
    patch: int
    tubelet: int
    final_norm: bool
    decoder_dim: int | None
    """None, with the two below: there is no decoder."""
    decoder_depth: int | None
    decoder_mlp_dim: int | None


def shape_of(state: Mapping[str, Tensor]) -> Shape:
    """Return the architecture that a checkpoint in our names was made for.

    Raises:
        WeightsError: a key that tells it is missing.
    """
    needed = ("encoder.patch_embed.weight", "encoder.blocks.0.mlp.fc1.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise WeightsError(f"missing: {missing}")
    dim, _, tubelet, patch, _ = state[needed[0]].shape
    first = state.get("decoder.blocks.0.mlp.fc1.weight")
    return Shape(
        dim=dim,
        depth=_depth(state, "encoder"),
        mlp_dim=len(state[needed[1]]),
        patch=patch,
        tubelet=tubelet,
        final_norm="encoder.norm.weight" in state,
        decoder_dim=None if first is None else first.shape[1],
        decoder_depth=None if first is None else _depth(state, "decoder"),
        decoder_mlp_dim=None if first is None else len(first),
    )


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


def _depth(state: Mapping[str, Tensor], side: str) -> int:
    """Return the number of blocks of a side.

    Raises:
        WeightsError: one between the first and the last is missing.
    """
    found = {int(block[2]) for block in map(OUR_BLOCK.fullmatch, state) if block is not None and block[1] == side}
    missing = sorted(set(range(max(found) + 1)) - found)
    if missing:
        raise WeightsError(f"missing: {[f'{side}.blocks.{number}' for number in missing]}")
    return len(found)


_OFFICIAL_PATCHES = re.compile(r"\bpatch_embed\.proj\.")
_OFFICIAL_IGNORED = re.compile(r"(fc_norm|head)\.")  # of a classifier that was fine-tuned on videos of people


def _official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    is_pretraining = any(key.startswith("encoder.") for key in state)
    entries = []
    for key, value in state.items():
        if not is_pretraining and _OFFICIAL_IGNORED.match(key):
            continue
        name = key if is_pretraining else f"encoder.{key}"
        entries.append((_OFFICIAL_PATCHES.sub("patch_embed.", name), key, value))
    return dict(_known(without_doubles(entries)))


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
    entries = [(name, name, value) for name, value in hugging_face.to_ours(encoder).items()]
    unknown = []
    for key, value in state.items():
        if key.startswith("pretrained_encoder.") or key.endswith("positional_encoding.inv_freq"):
            continue
        name = _echo_vision_name(key)
        if name is None:
            unknown.append(key)
        else:
            entries.append((name, key, value))
    if unknown:
        raise WeightsError(f"no key of a fine-tuned Echo-Vision-FM: {sorted(unknown)}")
    return without_doubles(entries)


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


_OUR_VIDEOMAE = re.compile(
    rf"{OUR_BLOCK.pattern}|encoder\.(patch_embed|norm)\.(weight|bias)"
    r"|encoder_to_decoder\.weight|mask_token|decoder\.(norm|head)\.(weight|bias)"
)
_OUR_TASKS = re.compile(
    r"(branches\.\w+\.|fusion\.)?(stf|head)\..+"
)  # the module that they are loaded into knows them all


def _known(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    unknown = [key for key in state if not _OUR_VIDEOMAE.fullmatch(key)]
    if unknown:
        raise WeightsError(f"no key of VideoMAE: {sorted(unknown)}")
    return state
