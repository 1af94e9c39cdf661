"""`trainer import-weights`: what goes in, what its description says, and the way back into transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VideoMAEForPreTraining

from model.net.echo_vision import EchoVision
from model.net.mae import MaskedAutoencoder
from model.tasks import CATALOGUE, Task
from model.weights import Family, import_state, load_strictly
from tests.doubles import checkpoints
from trainer.errors import DataError, UsageError
from trainer.import_weights import Geometry, convert, read_info

TINY = Geometry(heads=4, frames=8, size=32)

UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A file that does not exist yet."""
    return tmp_path / "ours.safetensors"


def saved(tmp_path: Path, state: dict[str, Tensor], name: str = "theirs.pth") -> Path:
    """Return a file that holds the state."""
    torch.save({"model": state}, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_transformers_reads_back_what_it_saved_by_way_of_ours(
    tmp_path: Path, out: Path, use_mean_pooling: bool
) -> None:
    network = checkpoints.video_mae(use_mean_pooling=use_mean_pooling)
    network.save_pretrained(tmp_path / "theirs")

    convert(tmp_path / "theirs", out, geometry=TINY)
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    convert(out, tmp_path / "back" / "model.safetensors", to_hf=True)
    again = VideoMAEForPreTraining.from_pretrained(tmp_path / "back").eval()

    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    mask = torch.arange(64)[None] < 54
    clip = torch.rand(1, 8, 3, 32, 32)
    assert torch.equal(network(clip, bool_masked_pos=mask).logits, again(clip, bool_masked_pos=mask).logits)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(
            checkpoints.official(checkpoints.hugging_face()), (Family.OFFICIAL, 1e-6, 1e-6, IMAGENET), id="official"
        ),
        pytest.param(checkpoints.hugging_face(), (Family.HUGGING_FACE, 1e-12, 1e-5, IMAGENET), id="hub"),
        pytest.param(
            checkpoints.hugging_face(final_norm=False, old_names=True),
            (Family.HUGGING_FACE, 1e-12, 1e-5, UNIT),
            id="echo vision's pre-training",
        ),
        pytest.param(
            checkpoints.echo_vision(Task.LVEF), (Family.ECHO_VISION, 1e-12, None, UNIT), id="echo vision's fine-tuning"
        ),
    ],
)
def test_the_description_says_what_the_weights_do_not(
    tmp_path: Path, out: Path, state: dict[str, Tensor], expected: tuple[Any, ...]
) -> None:
    convert(saved(tmp_path, state), out, geometry=TINY)

    info = read_info(out)
    assert info is not None
    norm_eps = info.decoder.norm_eps if info.decoder else None
    assert (info.family, info.net.eps, norm_eps, (info.clip.mean, info.clip.std)) == expected
    assert "CC BY-NC 4.0" in info.licence


@pytest.mark.parametrize("final_norm", [True, False])
def test_an_imported_pre_training_fills_our_own(tmp_path: Path, out: Path, final_norm: bool) -> None:
    convert(saved(tmp_path, checkpoints.hugging_face(final_norm=final_norm)), out, geometry=TINY)

    info = read_info(out)
    assert info is not None
    assert info.decoder is not None
    load_strictly(MaskedAutoencoder(info.net, info.decoder), load_file(out))
    assert (info.decoder.depth, info.net.final_norm) == (2, final_norm)


def test_a_normalisation_that_the_form_does_not_tell_can_be_said(tmp_path: Path, out: Path) -> None:
    file = saved(tmp_path, checkpoints.hugging_face())

    convert(file, out, geometry=Geometry(heads=4, frames=8, size=32, normalisation="unit"))

    info = read_info(out)
    assert info is not None
    assert (info.clip.mean, info.clip.std) == UNIT


@pytest.mark.parametrize("task", [Task.LVEF, Task.LVEF_REDUCED, Task.AORTIC_STENOSIS])
def test_a_fine_tuned_network_comes_in_whole_for_its_task(tmp_path: Path, out: Path, task: Task) -> None:
    file = saved(tmp_path, checkpoints.echo_vision(task))

    convert(file, out, task=task, geometry=Geometry(heads=4, frames=8))

    info = read_info(out)
    assert info is not None
    assert (info.net.stf_layout, info.net.size, info.task) == ("released", 32, task)
    load_strictly(EchoVision(info.net, {task.value: CATALOGUE[task].num_outputs}), load_file(out))


def test_old_bias_names_are_written_for_old_transformers(tmp_path: Path, out: Path) -> None:
    source = checkpoints.hugging_face(old_names=True)

    convert(saved(tmp_path, source), out, to_hf=True, bias_names="old")

    assert all(torch.equal(source[key], value) for key, value in load_file(out).items())
    assert load_file(out).keys() == source.keys()


def test_a_run_s_weights_are_no_import(tmp_path: Path) -> None:
    save_file({"encoder.patch_embed.weight": torch.ones(1)}, tmp_path / "weights.safetensors")

    assert read_info(tmp_path / "weights.safetensors") is None


def test_nothing_is_overwritten(tmp_path: Path, out: Path) -> None:
    out.write_text("mine")

    with pytest.raises(UsageError, match=r"ours\.safetensors: exists"):
        convert(saved(tmp_path, checkpoints.hugging_face()), out)

    assert out.read_text() == "mine"


def _not_finite() -> dict[str, Tensor]:
    return checkpoints.hugging_face() | {"mask_token": torch.tensor([[[float("nan")]]])}


@pytest.mark.parametrize(
    ("state", "how", "error", "message"),
    [
        ({"conv1.weight": torch.ones(1)}, {}, DataError, r"theirs\.pth: no VideoMAE or Echo-Vision-FM checkpoint"),
        (_not_finite(), {}, DataError, r"theirs\.pth: not finite: \['mask_token'\]"),
        (checkpoints.hugging_face(), {"task": Task.LVEF}, DataError, "has no head of a task"),
        (checkpoints.hugging_face(), {"task": Task.LVEF, "to_hf": True}, UsageError, "--to-hf"),
        (checkpoints.hugging_face(), {}, UsageError, r"theirs\.pth: heads: .*: say it by --heads"),
        (import_state(checkpoints.hugging_face()).state, {}, UsageError, "in our names already"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, out: Path, state: dict[str, Tensor], how: dict[str, Any], error: type[Exception], message: str
) -> None:
    file = saved(tmp_path, state)

    with pytest.raises(error, match=message) as caught:
        convert(file, out, **how)

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        convert(saved(tmp_path, checkpoints.hugging_face()), tmp_path / "nowhere" / "ours.safetensors")
