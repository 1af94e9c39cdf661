"""Checkpoints of others: read without being run, named as ours, and named back bit for bit."""

import argparse
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import read_checkpoint
from model.errors import WeightsError
from model.net.echo_vision import EchoVision
from model.tasks import Task
from model.weights import Family, echo_vision_branch, import_state, load_strictly, shape_of, to_hugging_face
from tests.doubles import checkpoints

State = dict[str, Tensor]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Bomb:
    """What a pickle with code in it holds."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (print, ("it was run",))


@pytest.mark.parametrize("wrapper", [None, "model", "module", "model_state_dict"])
def test_what_torch_saved_is_read(tmp_path: Path, wrapper: str | None) -> None:
    state = checkpoints.hugging_face()
    beside = {"epoch": 3, "val_loss": np.float64(0.5), "args": argparse.Namespace(lr=1e-4)}
    torch.save(state if wrapper is None else {wrapper: state, **beside}, tmp_path / "file.pth")

    assert same(read_checkpoint(tmp_path / "file.pth"), state)


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = checkpoints.hugging_face()
    save_file(state, tmp_path / "file.safetensors")

    assert same(read_checkpoint(tmp_path / "file.safetensors"), state)


def test_accelerate_s_folder_is_read_but_for_its_other_pickles(tmp_path: Path) -> None:
    state = checkpoints.hugging_face(old_names=True)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "optimizer.bin").write_bytes(pickle.dumps(Bomb()))

    assert same(read_checkpoint(tmp_path), state)


def _bytes_of(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"no checkpoint", "something other than weights", id="text"),
        pytest.param(_bytes_of({"a": torch.ones(9)})[:-200], "damaged, or no checkpoint", id="truncated"),
        pytest.param(_bytes_of({"model": {}, "x": Bomb()}), "would run print", id="code"),
        pytest.param(pickle.dumps(Bomb()), "something other than weights", id="plain pickle"),
        pytest.param(_bytes_of([torch.ones(1)]), "no weights but list", id="list"),
        pytest.param(_bytes_of({"model": {}}), "no weights but", id="nothing"),
        pytest.param(_bytes_of({"epoch": 3, "a": torch.ones(1)}), r"\['epoch'\] are no tensors", id="other things"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file.pth"
    file.write_bytes(content)

    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(file)

    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("gone.pth", "No such file"), ("", "needs one of pytorch_model.bin")])
def test_a_place_without_a_checkpoint_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(tmp_path / name)


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(b"\xff" * 64)

    with pytest.raises(WeightsError, match="no whole safetensors file"):
        read_checkpoint(tmp_path / "file.safetensors")


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("names", ["new", "old"])
def test_hugging_face_s_names_come_back_bit_for_bit(names: str, prefix: str, decoder: bool, final_norm: bool) -> None:
    source = checkpoints.hugging_face(final_norm=final_norm, decoder=decoder, old_names=names == "old")

    imported = import_state({prefix + key: value for key, value in source.items()})

    assert imported.family is Family.HUGGING_FACE
    assert same(to_hugging_face(imported.state, bias_names=names), source)  # type: ignore[arg-type]  # a parameter


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_precision_of_a_checkpoint_stays(dtype: torch.dtype) -> None:
    source = {key: value.to(dtype) for key, value in checkpoints.hugging_face().items()}

    assert same(to_hugging_face(import_state(source).state), source)


def test_the_official_names_become_hugging_face_s_bit_for_bit() -> None:
    source = checkpoints.hugging_face()

    imported = import_state(checkpoints.official(source))

    assert imported.family is Family.OFFICIAL
    assert same(to_hugging_face(imported.state), source)


def test_an_official_fine_tuned_encoder_is_read_without_its_classifier() -> None:
    source = checkpoints.hugging_face(final_norm=False, decoder=False)
    official = {key.removeprefix("encoder."): value for key, value in checkpoints.official(source).items()}
    classifier = {"fc_norm.weight": torch.ones(48), "head.weight": torch.ones(400, 48)}

    assert same(to_hugging_face(import_state(official | classifier).state), source)


def test_a_fine_tuned_echo_vision_s_encoder_becomes_hugging_face_s_bit_for_bit() -> None:
    imported = import_state(checkpoints.echo_vision(Task.LVEF))

    assert imported.family is Family.ECHO_VISION
    assert same(
        to_hugging_face(imported.state, bias_names="old"),
        checkpoints.hugging_face(final_norm=False, decoder=False, old_names=True),
    )


def test_our_own_names_are_read_again() -> None:
    ours = import_state(checkpoints.hugging_face()).state

    imported = import_state(ours)

    assert imported.family is Family.OURS
    assert same(imported.state, ours)


def test_the_shape_stands_in_the_weights() -> None:
    shape = shape_of(import_state(checkpoints.hugging_face()).state)

    assert (shape.dim, shape.depth, shape.mlp_dim, shape.patch, shape.tubelet) == (48, 3, 96, 8, 2)
    assert (shape.decoder_dim, shape.decoder_depth, shape.decoder_mlp_dim) == (24, 2, 64)
    assert shape.final_norm


def test_an_encoder_alone_has_no_decoder() -> None:
    assert shape_of(import_state(checkpoints.hugging_face(decoder=False)).state).decoder_depth is None


def test_a_block_that_is_missing_is_named() -> None:
    source = {key: value for key, value in checkpoints.hugging_face().items() if ".layer.1." not in key}

    with pytest.raises(WeightsError, match=r"missing: \['encoder.blocks.1'\]"):
        shape_of(import_state(source).state)


ROAD = "videomae.encoder.layer.0.attention.attention."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda state: state | {f"{ROAD}q_bias": torch.ones(48)},
            r"both say the same: \['.*attention.q_bias', '.*attention.query.bias'\]",
            id="old and new names",
        ),
        pytest.param(
            lambda state: state | {"module.mask_token": torch.ones(1)},
            r"both say the same: \['mask_token', 'module.mask_token'\]",
            id="twice behind module",
        ),
        pytest.param(
            lambda state: {key: value for key, value in state.items() if key != f"{ROAD}key.weight"},
            rf"missing: \['{ROAD}key.weight'\]",
            id="no key",
        ),
        pytest.param(
            lambda state: state | {f"{ROAD}key.weight": torch.ones(48, 47)},
            "of different shapes: videomae.encoder.layer.0.",
            id="another shape",
        ),
        pytest.param(
            lambda state: state | {"videomae.gamma": torch.ones(1), "videomae.beta": torch.ones(1)},
            r"no key of Hugging Face's VideoMAE: \['videomae.beta', 'videomae.gamma'\]",
            id="unknown keys",
        ),
        pytest.param(lambda _: {"conv1.weight": torch.ones(1)}, r"begins with \['conv1.weight'\]", id="other network"),
        pytest.param(
            lambda state: checkpoints.official(state) | {"encoder.blocks.0.gamma_1": torch.ones(48)},
            r"no key of VideoMAE: \['encoder.blocks.0.gamma_1'\]",
            id="official with layer scale",
        ),
        pytest.param(
            lambda _: checkpoints.echo_vision(Task.LVEF) | {"stff_net.other": torch.ones(1)},
            r"no key of a fine-tuned Echo-Vision-FM: \['stff_net.other'\]",
            id="unknown key of echo vision",
        ),
        pytest.param(
            lambda _: checkpoints.echo_vision(Task.LVEF) | checkpoints.echo_vision(Task.LVEF, head="classifier"),
            "both say the same",
            id="two heads",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_its_keys(change: Callable[[State], State], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        import_state(change(checkpoints.hugging_face()))


def test_names_of_others_are_not_exported() -> None:
    with pytest.raises(WeightsError, match=r"\['optimizer.step'\]"):
        to_hugging_face({"optimizer.step": torch.ones(1)})


@pytest.mark.parametrize(
    ("task", "head"),
    [(Task.LVEF, "regressor"), (Task.LVEF_REDUCED, "classifier"), (Task.AORTIC_STENOSIS, "classifier")],
)
def test_a_fine_tuned_echo_vision_fills_our_network_strictly(task: Task, head: str) -> None:
    imported = import_state(checkpoints.echo_vision(task, head=head))
    network = EchoVision(checkpoints.echo_net(), {task.value: len(imported.state["head.6.bias"])})

    load_strictly(network.encoder, imported.part("encoder."))
    load_strictly(network.branches[task.value], echo_vision_branch(imported, task))

    answer = network.eval()(torch.rand(1, 3, 8, 32, 32), torch.arange(8)[None])[task.value]
    assert torch.isfinite(answer).all()


def test_a_released_classifier_of_the_preserved_class_knows_the_reduced_one_here() -> None:
    imported = import_state(checkpoints.echo_vision(Task.LVEF_REDUCED, head="classifier"))
    theirs = {key: value for key, value in imported.state.items() if key.startswith(("stf.", "head."))}
    network = EchoVision(checkpoints.echo_net(), {"lvef_reduced": 1}).eval()
    branch = network.branches["lvef_reduced"]
    tokens, indices = torch.rand(1, 64, 48), torch.arange(8)[None]

    load_strictly(branch, theirs)
    preserved = branch(tokens, indices)
    load_strictly(branch, echo_vision_branch(imported, Task.LVEF_REDUCED))

    assert torch.equal(branch(tokens, indices), -preserved)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (checkpoints.hugging_face(), "has no head of a task"),
        (checkpoints.echo_vision(Task.LVEF), "its head has 1 outputs, aortic_stenosis has 5"),
        (
            {key: value for key, value in checkpoints.echo_vision(Task.LVEF).items() if "head.2" not in key},
            r"missing: \['head.4.bias'\]|its head has 4 outputs",
        ),
    ],
)
def test_a_head_that_does_not_fit_its_task_is_refused(state: State, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        echo_vision_branch(import_state(state), Task.AORTIC_STENOSIS)
