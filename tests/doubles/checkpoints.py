"""Checkpoints of every family for one tiny network: 32 pixels in patches of 8, 8 frames in tubelets of 2."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from model.net.echo_vision import EchoVision, NetConfig
from model.tasks import CATALOGUE, Task

DEPTH, DECODER_DEPTH = 3, 2


def echo_net(**changes: object) -> NetConfig:
    """Return a tiny network as Echo-Vision-FM's is built."""
    tiny = {"frames": 8, "size": 32, "patch": 8, "dim": 48, "depth": DEPTH, "heads": 4, "mlp_dim": 96}
    return NetConfig.model_validate(
        tiny | {"stf_attention_dim": 16, "head_hidden": (8, 4), "stf_layout": "released"} | changes
    )


def video_mae(*, use_mean_pooling: bool, norm_pix_loss: bool = True) -> VideoMAEForPreTraining:
    """Return transformers' own tiny VideoMAE, random; `disturbed` moves what starts at 0 or 1."""
    torch.manual_seed(7)
    config = VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=8,
        tubelet_size=2,
        hidden_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        intermediate_size=96,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=DECODER_DEPTH,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=64,
        use_mean_pooling=use_mean_pooling,
        norm_pix_loss=norm_pix_loss,
    )
    return VideoMAEForPreTraining(config).eval()


def disturbed(network: VideoMAEForPreTraining) -> VideoMAEForPreTraining:
    """Return the network with no parameter at its start value of 0 or 1, where errors hide."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def hugging_face(
    *, final_norm: bool = True, decoder: bool = True, old_names: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """Return the state of a random VideoMAEForPreTraining; without decoder that of its encoder."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "videomae.embeddings.patch_embeddings.projection.weight": (48, 3, 2, 8, 8),
        "videomae.embeddings.patch_embeddings.projection.bias": (48,),
    }
    shapes |= _layers("videomae.encoder.layer", DEPTH, 48, 96)
    if final_norm:
        shapes |= {"videomae.layernorm.weight": (48,), "videomae.layernorm.bias": (48,)}
    if decoder:
        shapes |= {"encoder_to_decoder.weight": (24, 48), "mask_token": (1, 1, 24)}
        shapes |= _layers("decoder.decoder_layers", DECODER_DEPTH, 24, 64)
        shapes |= {"decoder.norm.weight": (24,), "decoder.norm.bias": (24,)}
        shapes |= {"decoder.head.weight": (384, 24), "decoder.head.bias": (384,)}
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return with_old_names(state) if old_names else state


def with_old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state as transformers before 5 wrote it."""
    return {re.sub(r"attention\.(query|value)\.bias$", _short, key): value for key, value in state.items()}


def official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of transformers under the official VideoMAE's names, by a road of its own."""
    renamed: dict[str, Tensor] = {}
    replacements = (
        ("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj"),
        ("videomae.encoder.layer", "encoder.blocks"),
        ("decoder.decoder_layers", "decoder.blocks"),
        ("videomae.layernorm", "encoder.norm"),
        ("attention.attention.query.bias", "attn.q_bias"),
        ("attention.attention.value.bias", "attn.v_bias"),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
    )
    for key, value in state.items():
        if key.endswith(("key.weight", "value.weight")):
            continue
        name, tensor = key, value
        if key.endswith("query.weight"):
            stem = key.removesuffix("query.weight")
            tensor = torch.cat([state[f"{stem}{third}.weight"] for third in ("query", "key", "value")])
            name = name.replace("attention.attention.query.weight", "attn.qkv.weight")
        for theirs, ours in replacements:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


def echo_vision(task: Task, *, seed: int = 0, head: str = "regressor") -> dict[str, Tensor]:
    """Return the state of a random fine-tuned Echo-Vision-FM, as the released code names it."""
    encoder = hugging_face(final_norm=False, decoder=False, old_names=True, seed=seed)
    state = {f"pretrained_encoder.{key.removeprefix('videomae.')}": value for key, value in encoder.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        branch = EchoVision(echo_net(), {"any": CATALOGUE[task].num_outputs}).branches["any"]
    roads = {
        "stf.joint_residual.": "stff_net.residual_stack_all.residual_stack.0.residual_block.",
        "stf.spatial_residual.": "stff_net.residual_stack_spatial.residual_stack.0.residual_block.",
        "stf.joint_attention.": "stff_net.gated_attention_all.",
        "stf.temporal_attention.": "stff_net.gated_attention_temporal.",
        "stf.spatial_conv.": "stff_net.conv_spatial.",
        "stf.frame_mlp.": "stff_net.fc_pe.",
    }
    for key, value in branch.state_dict().items():
        for ours, theirs in roads.items():
            if key.startswith(ours):
                state[theirs + key.removeprefix(ours)] = value.clone()
        flat = re.fullmatch(r"head\.(\d)\.(.+)", key)
        if flat is not None:
            layer, part = divmod(int(flat[1]), 3)
            state[f"{head}.head.{layer}.{part}.{flat[2]}"] = value.clone()
    state["stff_net.spatial_temporal_positional_encoding.inv_freq"] = torch.rand(8)
    return state


def _short(match: re.Match[str]) -> str:
    return f"attention.{match[1][0]}_bias"


def _layers(road: str, depth: int, dim: int, mlp_dim: int) -> dict[str, tuple[int, ...]]:
    inner: dict[str, tuple[int, ...]] = {
        "attention.attention.query.weight": (dim, dim),
        "attention.attention.query.bias": (dim,),
        "attention.attention.key.weight": (dim, dim),
        "attention.attention.value.weight": (dim, dim),
        "attention.attention.value.bias": (dim,),
        "attention.output.dense.weight": (dim, dim),
        "attention.output.dense.bias": (dim,),
        "intermediate.dense.weight": (mlp_dim, dim),
        "intermediate.dense.bias": (mlp_dim,),
        "output.dense.weight": (dim, mlp_dim),
        "output.dense.bias": (dim,),
        "layernorm_before.weight": (dim,),
        "layernorm_before.bias": (dim,),
        "layernorm_after.weight": (dim,),
        "layernorm_after.bias": (dim,),
    }
    return {f"{road}.{number}.{key}": shape for number in range(depth) for key, shape in inner.items()}
