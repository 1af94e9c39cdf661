"""A bundle loads whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import bundle
from model.bundle import Bundle
from model.clip.spec import ClipSpec
from model.errors import BundleError
from model.tasks import Task, View

MakeBundle = Callable[..., Bundle]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of `bundle.json`."""
    file = path / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights and put their digest right."""
    state = load_file(path / "weights.safetensors")
    change(state)
    save_file(state, path / "weights.safetensors")
    edit(path, weights_sha256=bundle.sha256_of(path / "weights.safetensors"))


def a_weight(state: dict[str, torch.Tensor]) -> str:
    return next(key for key in sorted(state) if key.startswith("encoder.") and key.endswith("qkv.weight"))


def test_a_saved_bundle_loads_with_the_same_weights(make_bundle: MakeBundle, tmp_path: Path) -> None:
    saved = make_bundle(tmp_path / "one")

    loaded = bundle.load(tmp_path / "one")

    assert loaded.manifest == saved.manifest
    assert loaded.digest == saved.digest
    state = saved.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.network.state_dict().items())


def test_a_loaded_network_is_ready_to_answer(make_bundle: MakeBundle, tmp_path: Path) -> None:
    network = make_bundle(tmp_path / "one").network

    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_same_training_writes_the_same_bytes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two")

    assert first.digest == second.digest


def test_weights_stored_in_half_are_computed_with_in_full_precision(make_bundle: MakeBundle, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "half", weights_dtype="float16")

    stored = load_file(tmp_path / "half" / "weights.safetensors")
    assert stored[a_weight(stored)].dtype == torch.float16
    assert made.network.state_dict()[a_weight(stored)].dtype == torch.float32


def test_loading_does_not_move_the_random_generator(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    before = torch.random.get_rng_state()

    bundle.load(tmp_path / "one")

    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_flipped_bit_of_the_weights_is_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    file = tmp_path / "one" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(BundleError, match=r"weights\.safetensors: sha256 is .*copy it again"):
        bundle.load(tmp_path / "one")


def test_weights_that_answer_otherwise_do_not_load_even_with_the_right_digest(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "one")
    edit_weights(tmp_path / "one", lambda state: state[a_weight(state)].mul_(-30.0))

    with pytest.raises(BundleError, match=r"bundle\.json: .* answers .* to the reference clip on cpu"):
        bundle.load(tmp_path / "one")


def test_a_reference_that_is_not_reproduced_refuses_the_load(make_bundle: MakeBundle, tmp_path: Path) -> None:
    reference = make_bundle(tmp_path / "one").manifest.reference.model_dump(mode="json")
    reference["outputs"]["lvef"][0] += 0.01 + 0.01 * abs(reference["outputs"]["lvef"][0])
    edit(tmp_path / "one", reference=reference)

    with pytest.raises(BundleError, match="lvef answers"):
        bundle.load(tmp_path / "one")


def test_another_final_norm_is_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    net = make_bundle(tmp_path / "one").manifest.net.model_dump(mode="json")
    edit(tmp_path / "one", net=net | {"final_norm": not net["final_norm"]})

    with pytest.raises(BundleError):
        bundle.load(tmp_path / "one")


def test_a_missing_weight_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    edit_weights(tmp_path / "one", lambda state: state.pop(a_weight(state)))

    with pytest.raises(BundleError, match=r"missing weights encoder\..*qkv\.weight"):
        bundle.load(tmp_path / "one")


def test_an_unknown_weight_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    edit_weights(tmp_path / "one", lambda state: state.update(surprise=torch.zeros(1)))

    with pytest.raises(BundleError, match="unknown weights surprise"):
        bundle.load(tmp_path / "one")


def test_a_weight_of_another_shape_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    edit_weights(tmp_path / "one", lambda state: state.update({a_weight(state): torch.zeros(3, 3)}))

    with pytest.raises(BundleError, match=r"qkv\.weight is \(3, 3\), not"):
        bundle.load(tmp_path / "one")


def test_a_weight_of_another_precision_is_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    edit(tmp_path / "one", weights_dtype="float16")

    with pytest.raises(BundleError, match=r"is torch\.float32, bundle\.json says torch\.float16"):
        bundle.load(tmp_path / "one")


def test_an_unknown_key_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    edit(tmp_path / "one", normalization="imagenet")

    with pytest.raises(BundleError, match=r"bundle\.json: normalization: Extra inputs are not permitted"):
        bundle.load(tmp_path / "one")


@pytest.mark.parametrize(
    "key", ["tasks", "net", "clip", "views", "data_digests", "seed", "weights_sha256", "reference"]
)
def test_a_missing_key_is_named(make_bundle: MakeBundle, tmp_path: Path, key: str) -> None:
    make_bundle(tmp_path / "one")
    file = tmp_path / "one" / "bundle.json"
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))

    with pytest.raises(BundleError, match=f"{key}: Field required"):
        bundle.load(tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"tasks": ["lvef", "lvef"]}, "a task stands twice"),
        ({"tasks": ["lvef"]}, "views: needs exactly one entry"),
        ({"tasks": ["strain"]}, "tasks.0"),
        ({"weights_sha256": "abc"}, "weights_sha256"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    make_bundle: MakeBundle, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make_bundle(tmp_path / "one")
    edit(tmp_path / "one", **changes)

    with pytest.raises(BundleError, match=message):
        bundle.load(tmp_path / "one")


def test_a_recipe_that_the_network_does_not_fit_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    clip = make_bundle(tmp_path / "one").manifest.clip.model_dump(mode="json")
    edit(tmp_path / "one", clip=clip | {"num_frames": 8})

    with pytest.raises(BundleError, match="clip and net: differ"):
        bundle.load(tmp_path / "one")


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors"])
def test_a_missing_file_is_named(make_bundle: MakeBundle, tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path / "one")
    (tmp_path / "one" / name).unlink()

    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        bundle.load(tmp_path / "one")


def test_weights_that_are_no_safetensors_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one")
    (tmp_path / "one" / "weights.safetensors").write_bytes(b"pickle")
    edit(tmp_path / "one", weights_sha256=bundle.sha256_of(tmp_path / "one" / "weights.safetensors"))

    with pytest.raises(BundleError, match="no safetensors file"):
        bundle.load(tmp_path / "one")


def test_an_existing_folder_is_not_written_over(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "one")

    with pytest.raises(BundleError, match="exists"):
        make_bundle(tmp_path / "one", seed=1)
    assert bundle.load(tmp_path / "one").digest == first.digest


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle.write_folder(tmp_path / "one", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_does_not_fit_together_is_not_written(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="seed: "):
        make_bundle(tmp_path / "one", seed=-1)
    assert list(tmp_path.iterdir()) == []


def test_the_reference_clip_is_the_same_everywhere() -> None:
    clip, indices = bundle.reference_clip(ClipSpec(num_frames=4, size=32), 7)

    assert clip.shape == (1, 3, 4, 32, 32)
    assert indices.tolist() == [[0, 4, 8, 12]]
    assert clip.flatten()[:3].tolist() == [0.9449049234390259, 0.6250954270362854, 0.6841799020767212]


def test_a_bundle_of_one_task_has_that_head_alone(make_bundle: MakeBundle, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "one", views={Task.LVEF: (View.A4C,)})

    assert set(made.manifest.reference.outputs) == {Task.LVEF}
