"""Small stores with a picture that tells the target: a disc that shrinks by the LVEF, for tests of training."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.clip.spec import ClipSpec
from model.tasks import Task, View
from trainer.data.manifest import Pixels, Sample, StoreInfo
from trainer.data.store import INFO, SAMPLES, encode, shard_path

SPEC = ClipSpec(num_frames=4, size=32)
TINY_NET = {
    "frames": 4, "size": 32, "patch": 8, "dim": 24, "depth": 2, "heads": 2, "mlp_dim": 48, "final_norm": True,
    "stf_spatial_pool": "depthwise", "stf_attention_dim": 16, "head_hidden": [16, 8], "share": "fusion",
}  # fmt: skip
TINY_DECODER = {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}

Change = Callable[[Sample], Sample]


def make_store(
    path: Path,
    *,
    subjects: int = 20,
    pixels: Pixels = "raw",
    seed: int = 0,
    change: Change = lambda sample: sample,
    is_phantom: bool = False,
) -> Path:
    """Write a store of one A4C and one PLAX loop a subject; three quarters train, then val, then test."""
    (path / "shards").mkdir(parents=True)
    samples, content = [], b""
    for subject in range(subjects):
        rng = np.random.default_rng([seed, subject])
        lvef = float(rng.uniform(20.0, 75.0))
        share = subject / subjects
        for view in (View.A4C, View.PLAX):
            frames = _disc(rng, lvef, view)
            encoded = encode(frames, pixels)
            samples.append(
                change(
                    Sample(
                        key=f"{subject:03d}-{view.value}",
                        subject=f"{subject:03d}",
                        study=f"{subject:03d}",
                        source=f"{subject:03d}/{view.value}.dcm",
                        split="train" if share < 0.75 else "val" if share < 0.88 else "test",
                        kind="loop",
                        view=view,
                        targets={Task.LVEF: lvef, Task.LVEDV: 120.0, Task.LVESV: 120.0 * (1 - lvef / 100)},
                        frame_time_ms=33.0,
                        num_frames=10,
                        indices=(0, 3, 6, 9),
                        take=(0, 1, 2, 3),
                        stored=4,
                        shard=0,
                        offset=len(content),
                        length=len(encoded),
                    )
                )
            )
            content += encoded
    shard_path(path, 0).write_bytes(content)
    lines = "".join(sample.model_dump_json() + "\n" for sample in sorted(samples, key=lambda one: one.key)).encode()
    (path / SAMPLES).write_bytes(lines)
    info = StoreInfo(
        dataset="discs",
        clip=SPEC,
        pixels=pixels,
        samples_sha256=hashlib.sha256(lines).hexdigest(),
        made_of="0" * 64,
        counts={"files": len(samples), "kept": len(samples)},
        is_phantom=is_phantom,
    )
    (path / INFO).write_text(info.model_dump_json())
    return path


def _disc(rng: np.random.Generator, lvef: float, view: View) -> np.ndarray:
    y, x = np.mgrid[0:32, 0:32] - 15.5
    frames = np.full((4, 3, 32, 32), 90 if view is View.A4C else 40, dtype=np.float64)
    for number, part in enumerate((0.0, 0.5, 1.0, 0.5)):
        radius = 12.0 * np.sqrt(1.0 - part * lvef / 100.0)
        frames[number, :, np.hypot(x, y) < radius] = 220
    return np.clip(frames + rng.normal(0.0, 8.0, (4, 1, 32, 32)), 0, 255).astype(np.uint8)
