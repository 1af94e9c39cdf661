"""Several networks asked together, each number independent of its neighbours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import bundle
from model.aggregate import gate
from model.bundle import Bundle
from model.clip.scale import Scale
from model.clip.spec import ClipSpec
from model.clip.transform import make_clip
from model.ensemble import SHIPPED, Ensemble, fingerprint, locate, pad, stack_stills
from model.errors import BundleError
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.prediction import Loop, decode
from model.tasks import CATALOGUE, LOOP_TASKS, Task, View

MakeBundle = Callable[..., Bundle]
MakeEnsemble = Callable[..., Path]

GATE = {Task.VIEW: tuple(View)}


SCALE = Scale(Screen().row_mm, Screen().column_mm)
"""Of a phantom on the usual screen."""


def edit(path: Path, **changes: Any) -> None:
    """Change keys of `ensemble.json`."""
    file = path / "ensemble.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def some_clips(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clips_BCTHW = torch.rand((count, 3, 4, 32, 32), generator=generator)
    indices_BT = torch.randint(0, 60, (count, 4), generator=generator).sort(dim=1).values
    return clips_BCTHW, indices_BT


@pytest.fixture
def tiny(make_ensemble: MakeEnsemble, tmp_path: Path) -> Ensemble:
    """Two members, each with every task."""
    return Ensemble.load(make_ensemble(tmp_path / "tiny"))


def test_every_member_answers_every_task_of_a_loop(tiny: Ensemble) -> None:
    (outputs,) = tiny.predict_loops(*some_clips(1))

    assert tuple(outputs) == LOOP_TASKS
    assert all(len(members) == 2 for members in outputs.values())
    assert all(len(values) == CATALOGUE[task].num_outputs for task, ms in outputs.items() for values in ms)


def test_probabilities_add_up_to_one(tiny: Ensemble) -> None:
    (outputs,) = tiny.predict_loops(*some_clips(1))

    assert [sum(member) for member in outputs[Task.VIEW]] == pytest.approx([1.0, 1.0])


def test_members_are_different_networks(tiny: Ensemble) -> None:
    (outputs,) = tiny.predict_loops(*some_clips(1))

    assert outputs[Task.LVEF][0] != outputs[Task.LVEF][1]


def test_an_ensemble_says_what_its_bundles_say(tiny: Ensemble, tmp_path: Path) -> None:
    clips_BCTHW, indices_BT = some_clips(1)
    network = bundle.load(tmp_path / "tiny" / "member-1").network

    with torch.inference_mode():
        raw = network(clips_BCTHW, indices_BT)["lvedv"][0].tolist()

    assert tiny.predict_loops(clips_BCTHW, indices_BT)[0][Task.LVEDV][1] == decode(Task.LVEDV, raw)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_a_number_never_depends_on_its_batch(tiny: Ensemble, count: int, seed: int) -> None:
    clips_BCTHW, indices_BT = some_clips(count, seed)

    together = tiny.predict_loops(clips_BCTHW, indices_BT)
    alone = [tiny.predict_loops(clips_BCTHW[i : i + 1], indices_BT[i : i + 1])[0] for i in range(count)]

    assert together == alone


def test_no_loops_give_no_outputs(tiny: Ensemble) -> None:
    assert tiny.predict_loops(*some_clips(0)) == []


def test_a_study_is_asked_for_the_tasks_of_studies_alone(tiny: Ensemble) -> None:
    clips_BCTHW, indices_BT = some_clips(1)

    outputs = tiny.predict_study(clips_BCTHW[0], indices_BT[0])

    assert set(outputs) == {Task.AORTIC_STENOSIS}
    assert len(outputs[Task.AORTIC_STENOSIS]) == 2


def test_members_of_a_task_are_the_bundles_that_carry_it(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "mixed", views=[GATE, GATE | {Task.LVEF: (View.A4C,)}])
    mixed = Ensemble.load(path)

    (outputs,) = mixed.predict_loops(*some_clips(1))

    assert mixed.tasks == {Task.VIEW, Task.LVEF}
    assert len(outputs[Task.VIEW]) == 2
    assert len(outputs[Task.LVEF]) == 1


def test_a_task_speaks_on_the_views_that_all_its_members_were_trained_on(
    make_ensemble: MakeEnsemble, tmp_path: Path
) -> None:
    both = GATE | {Task.LVEF: (View.A4C, View.A2C)}
    path = make_ensemble(tmp_path / "mixed", views=[both, GATE | {Task.LVEF: (View.A4C, View.PLAX)}])

    assert Ensemble.load(path).info.views[Task.LVEF] == {View.A4C}


def test_low_precision_stays_near_full_precision(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    clip = some_clips(1)

    (full,) = Ensemble.load(path).predict_loops(*clip)
    (low,) = Ensemble.load(path, precision="bf16").predict_loops(*clip)

    assert low[Task.LVEF] != full[Task.LVEF]
    assert np.array(low[Task.VIEW]) == pytest.approx(np.array(full[Task.VIEW]), abs=0.05)


def test_where_the_networks_looked_is_computed_in_full_precision(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    (clips, _), tasks = some_clips(1), [Task.LVEF]

    full, low = (Ensemble.load(path, precision=one).attention(clips, tasks) for one in ("fp32", "bf16"))

    assert full == low


def test_the_digest_is_that_of_the_content_not_of_the_place(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    shutil.copytree(path, tmp_path / "copy")

    assert Ensemble.load(path).digest == Ensemble.load(tmp_path / "copy").digest


@pytest.mark.parametrize(
    "changes",
    [{"version": "1.1"}, {"statement": "trained"}, {"view_threshold": 0.9}, {"view_floor": 0.45}, {"name": "other"}],
)
def test_another_manifest_has_another_digest(
    make_ensemble: MakeEnsemble, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = make_ensemble(tmp_path / "tiny")
    before = Ensemble.load(path).digest
    edit(path, **changes)

    assert Ensemble.load(path).digest != before


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "a/b", "..", ".hidden", "", "a\\b", "a\n"])
def test_a_bundle_elsewhere_is_refused(make_ensemble: MakeEnsemble, tmp_path: Path, name: str) -> None:
    path = make_ensemble(tmp_path / "tiny")
    edit(path, bundles=[{"name": name, "sha256": "0" * 64}])

    with pytest.raises(BundleError, match=r"ensemble\.json: bundles\.0\.name"):
        Ensemble.load(path)


def test_a_bundle_that_was_exchanged_is_refused(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    shutil.rmtree(path / "member-0")
    shutil.copytree(path / "member-1", path / "member-0")

    with pytest.raises(BundleError, match=r"member-0.bundle\.json: sha256 is .*copy the whole ensemble again"):
        Ensemble.load(path)


def test_a_bundle_that_stands_twice_is_refused(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    (first, _second) = json.loads((path / "ensemble.json").read_text())["bundles"]
    edit(path, bundles=[first, first | {"name": "copy"}])

    with pytest.raises(BundleError, match="a bundle stands twice"):
        Ensemble.load(path)


def test_an_unknown_key_is_refused(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    edit(path, treshold=0.5)

    with pytest.raises(BundleError, match="treshold: Extra inputs are not permitted"):
        Ensemble.load(path)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"ensemble\.json: cannot be read"):
        Ensemble.load(tmp_path)


@pytest.fixture
def shelf(make_ensemble: MakeEnsemble, tmp_path: Path) -> Path:
    """Versions 1 and 2 on a shelf; 1 is current."""
    versions = tmp_path / "shelf" / "versions"
    versions.mkdir(parents=True)
    for version in ("1", "2"):
        edit(make_ensemble(versions / version), version=version)
    (tmp_path / "shelf" / "current").symlink_to("versions/1")
    return tmp_path / "shelf"


def switch(shelf: Path, target: str) -> None:
    """Make another version current."""
    (shelf / "new").symlink_to(target)
    (shelf / "new").replace(shelf / "current")


def test_a_shelf_s_current_version_is_loaded(shelf: Path) -> None:
    assert Ensemble.load(shelf).info.version == "1"


def test_a_switched_shelf_gives_the_other_version_and_another_fingerprint(shelf: Path) -> None:
    before = fingerprint(shelf)

    switch(shelf, "versions/2")

    assert Ensemble.load(shelf).info.version == "2"
    assert fingerprint(shelf) != before


def test_what_was_located_stays_while_the_shelf_is_switched(shelf: Path) -> None:
    located = locate(shelf)

    switch(shelf, "versions/2")

    assert Ensemble.load(located).info.version == "1"


def test_a_plain_folder_s_fingerprint_changes_with_its_manifest(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    before = fingerprint(path)
    assert fingerprint(path) == before

    make_ensemble(tmp_path / "other")
    (tmp_path / "other" / "ensemble.json").replace(path / "ensemble.json")

    assert fingerprint(path) != before


def test_an_ensemble_that_comes_where_none_was_changes_the_fingerprint(
    make_ensemble: MakeEnsemble, tmp_path: Path
) -> None:
    before = fingerprint(tmp_path / "tiny")

    make_ensemble(tmp_path / "tiny")

    assert fingerprint(tmp_path / "tiny") != before


@pytest.mark.parametrize("target", ["versions/3", "current", "."])
def test_a_shelf_whose_link_leads_nowhere_is_refused(shelf: Path, target: str) -> None:
    switch(shelf, target)

    with pytest.raises(BundleError, match="shelf"):
        Ensemble.load(shelf)

    assert fingerprint(shelf) == fingerprint(shelf)


def test_bundles_of_different_recipes_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = tmp_path / "mixed"
    path.mkdir()
    first = make_bundle(path / "first")
    second = make_bundle(path / "second", clip=ClipSpec(num_frames=4, size=32, mean=(0.5, 0.5, 0.5)))
    members = [{"name": "first", "sha256": first.digest}, {"name": "second", "sha256": second.digest}]
    rest = {"format": 1, "name": "mixed", "version": "1", "statement": "none", "view_threshold": 0.5}
    (path / "ensemble.json").write_text(json.dumps(rest | {"bundles": members}))

    with pytest.raises(BundleError, match="differ in their clip recipe"):
        Ensemble.load(path)


def test_a_band_of_views_that_ends_before_it_begins_is_refused(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    edit(path, view_floor=0.6)

    with pytest.raises(BundleError, match=r"view_floor: is 0\.6, over view_threshold, which is 0\.5"):
        Ensemble.load(path)


@pytest.mark.parametrize(("threshold", "floor"), [(0.9, 0.4), (0.4, 0.4), (0.3, 0.3)])
def test_an_ensemble_from_before_there_was_a_band_loads_whatever_its_threshold(
    make_ensemble: MakeEnsemble, tmp_path: Path, threshold: float, floor: float
) -> None:
    path = make_ensemble(tmp_path / "tiny")
    edit(path, view_threshold=threshold)
    manifest = json.loads((path / "ensemble.json").read_text())
    del manifest["view_floor"]
    (path / "ensemble.json").write_text(json.dumps(manifest))

    assert Ensemble.load(path).info.view_floor == floor


def test_a_manifest_without_a_threshold_is_refused_by_name(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "tiny")
    manifest = json.loads((path / "ensemble.json").read_text())
    del manifest["view_floor"], manifest["view_threshold"]
    (path / "ensemble.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="view_threshold"):
        Ensemble.load(path)


def test_an_ensemble_s_views_are_as_sure_as_its_bundles_temperatures_make_them(
    make_bundle: MakeBundle, make_ensemble: MakeEnsemble, tmp_path: Path
) -> None:
    path = make_ensemble(tmp_path / "tiny")
    clip, indices = torch.rand(1, 3, 4, 32, 32), torch.arange(4)[None]
    (plain,) = Ensemble.load(path).predict_loops(clip, indices)
    manifest = json.loads((path / "member-1" / "bundle.json").read_text())
    (path / "member-1" / "bundle.json").write_text(json.dumps(manifest | {"view_temperature": 3.0}))
    names = ("member-0", "member-1")
    members = [{"name": name, "sha256": bundle.sha256_of(path / name / "bundle.json")} for name in names]
    edit(path, bundles=members)

    (cooled,) = Ensemble.load(path).predict_loops(clip, indices)

    assert cooled[Task.VIEW][0] == plain[Task.VIEW][0]
    roots = [value ** (1.0 / 3.0) for value in plain[Task.VIEW][1]]
    assert cooled[Task.VIEW][1] == pytest.approx([root / sum(roots) for root in roots])
    assert {task: cooled[task] for task in cooled if task is not Task.VIEW} == {
        task: plain[task] for task in plain if task is not Task.VIEW
    }


def test_an_ensemble_that_recognises_no_view_is_refused(make_ensemble: MakeEnsemble, tmp_path: Path) -> None:
    path = make_ensemble(tmp_path / "blind", views=[{Task.LVEF: (View.A4C,)}])

    with pytest.raises(BundleError, match="no bundle recognises views"):
        Ensemble.load(path)


def test_a_batch_is_filled_with_zeros() -> None:
    padded = pad(torch.ones(2, 3), 4)

    assert padded.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_a_stack_repeats_stills_when_they_are_too_few() -> None:
    stills = [torch.full((3, 32, 32), level) for level in (0.0, 1.0)]

    stack_CTHW, positions_T = stack_stills(stills, ClipSpec(num_frames=4, size=32))

    assert positions_T.tolist() == [0, 0, 0, 1]
    assert stack_CTHW.shape == (3, 4, 32, 32)
    assert stack_CTHW[0, :, 0, 0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_a_stack_takes_stills_evenly_when_they_are_too_many() -> None:
    stills = [torch.full((3, 32, 32), float(level)) for level in range(10)]

    stack_CTHW, positions_T = stack_stills(stills, ClipSpec(num_frames=4, size=32))

    assert positions_T.tolist() == [0, 3, 6, 9]
    assert stack_CTHW[0, :, 0, 0].tolist() == [0.0, 3.0, 6.0, 9.0]


@pytest.fixture(scope="module")
def shipped() -> Ensemble:
    """The ensemble that the package brings."""
    return Ensemble.load(SHIPPED)


def test_the_shipped_ensemble_says_what_its_numbers_are_worth(shipped: Ensemble) -> None:
    assert shipped.info.statement == "trained on phantoms: no meaning for patients"
    assert (shipped.info.name, shipped.info.version) == ("phantom", "0.5.0")


def test_the_shipped_ensemble_has_three_members_for_every_task(shipped: Ensemble) -> None:
    black = torch.zeros(3, 16, shipped.spec.size, shipped.spec.size)
    positions = torch.arange(16)

    (outputs,) = shipped.predict_loops(black[None], positions[None])
    outputs |= shipped.predict_study(black, positions)

    assert set(outputs) == set(Task)
    assert all(len(members) == 3 for members in outputs.values())


def test_the_shipped_ensemble_is_small_enough_to_travel_with_the_code() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 20_000_000


@pytest.mark.parametrize("view", list(View))
def test_the_shipped_gate_recognises_a_phantom_or_says_that_it_does_not(shipped: Ensemble, view: View) -> None:
    rng = np.random.default_rng(5)
    frames_THWC = render(Heart(edv_ml=120.0, esv_ml=50.0), view, num_frames=16, frame_time_ms=40.0, rng=rng)

    (outputs,) = shipped.predict_loops(make_clip(frames_THWC, shipped.spec, SCALE)[None], torch.arange(16)[None])

    assert gate(Loop(key="1", outputs=outputs), shipped.info).view in (view, None)


def test_the_shipped_gate_lets_an_apical_phantom_speak(shipped: Ensemble) -> None:
    rng = np.random.default_rng(5)
    frames_THWC = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=16, frame_time_ms=40.0, rng=rng)

    (outputs,) = shipped.predict_loops(make_clip(frames_THWC, shipped.spec, SCALE)[None], torch.arange(16)[None])

    assert gate(Loop(key="1", outputs=outputs), shipped.info).view is View.A4C
