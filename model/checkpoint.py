"""A checkpoint's file: its tensors by their own names, whatever its form, and never a line of its code.

Forms: safetensors; what torch.save wrote (`.pth`, `.bin`), the state bare or under `model`, `module` or
`model_state_dict`; the folder of accelerate or transformers, with `pytorch_model.bin` or `model.safetensors` in it.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.errors import WeightsError

_IN_A_FOLDER = ("pytorch_model.bin", "model.safetensors")
_FOREIGN = re.compile(r"GLOBAL (\S+)")
_WRAPPERS = ("model", "module", "model_state_dict")
_NUMPY_SCALAR = cast(Callable[..., object], np.float64(0).__reduce__()[0])  # numpy gives it no public name
# Data beside the weights: VideoMAE keeps its arguments, Echo-Vision-FM its loss as a number of numpy. Making them runs
# nothing of the file.
_HARMLESS: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, on the CPU, under the names that it gives them.

    Raises:
        WeightsError: it cannot be read, would run code, or is no checkpoint.
    """
    file = _file_in(path) if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            is_empty = not stream.read(1)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror}): give a checkpoint's file or folder") from error
    if is_empty:
        raise WeightsError(f"{file}: is empty: copy it again")
    return _state(_read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file), file)


def _file_in(folder: Path) -> Path:
    found = [folder / name for name in _IN_A_FOLDER if (folder / name).is_file()]
    if len(found) != 1:
        raise WeightsError(f"{folder}: needs one of {' and '.join(_IN_A_FOLDER)}: give the file itself")
    return found[0]


def _read_safetensors(file: Path) -> object:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file}: no whole safetensors file ({error}): copy it again") from error


def _read_pickle(file: Path) -> object:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol: it is read or refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _FOREIGN.search(str(error))
        why = (
            f"it would run {wanted[1]}, which nothing here does" if wanted else "it holds something other than weights"
        )
        raise WeightsError(f"{file}: {why}: save its state dict alone, or give another file") from error
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError, OSError) as error:
        # Damaged bytes end anywhere in torch's reader.
        first = f"{type(error).__name__} {error}".splitlines()[0][:120]
        raise WeightsError(f"{file}: damaged, or no checkpoint ({first}): copy it again") from error
    except EOFError as error:
        raise WeightsError(f"{file}: ends too early: copy it again") from error


def _state(content: object, file: Path) -> dict[str, Tensor]:
    """Return the state dict in what a file holds."""
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return _state(content[key], file)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{file}: holds no weights but {type(content).__name__}: give a checkpoint")
    strangers = sorted(str(key) for key, value in content.items() if not isinstance(value, Tensor))
    if strangers:
        raise WeightsError(f"{file}: holds no state dict: {strangers[:5]} are no tensors: give a checkpoint")
    return {str(key): value for key, value in content.items()}
