"""Two .npz files of any model's attention -> Samples. Needs no torch."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from iqa.attention.comparison import Measured, Samples, draw_samples
from iqa.attention.statistics import check_attention, sample_statistics
from iqa.errors import UserError


def read_npz_pair(paths: dict[str, Path], num_samples: int | None) -> Samples:
    """Read samples from two files.

    Args:
        paths: of the files, by `MODELS`.
        num_samples: how many to draw, or None for all.

    Raises:
        UserError: a file is missing or is not an .npz, an array is missing or bad, or the two do not fit together.
    """
    files = {model: _read_npz(path) for model, path in paths.items()}
    (full, no_middle), (first, second) = files.values(), paths.values()
    if full["attention"].shape != no_middle["attention"].shape:
        shapes = f"{full['attention'].shape} and {no_middle['attention'].shape}"
        raise UserError(f"{first} and {second} hold attention of shapes {shapes}: expected the same samples")
    groups = [file["group"] for file in (full, no_middle) if file["group"] is not None]
    if len(groups) == 2 and (groups[0] != groups[1]).any():
        sample = int(np.argmax(groups[0] != groups[1]))
        raise UserError(f"{first} and {second} put sample {sample} in different groups: expected the same samples")
    rows = draw_samples(len(full["attention"]), num_samples)
    files = {
        model: {name: None if a is None else a[rows] for name, a in arrays.items()} for model, arrays in files.items()
    }
    return Samples(
        names=[f"sample {row}" for row in rows],
        groups=groups[0][rows] if groups else None,
        models={model: _measure_arrays(arrays) for model, arrays in files.items()},
        crop=None,
        inputs={"samples_from": "npz", "groups": "the array `group`" if groups else None},
        notes=_npz_notes(files),
    )


def _read_npz(path: Path) -> dict[str, np.ndarray | None]:
    arrays: dict[str, np.ndarray | None] = dict.fromkeys(("attention", "mask", "error", "group"))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no .npz archive, or a part of one: write it with numpy.savez(path, attention=...)")
    try:
        with np.load(path, allow_pickle=False) as file:
            # A member that is not an array comes as its bytes.
            arrays |= {name: np.asarray(file[name]) for name in arrays if name in file}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as .npz: {' '.join(str(error).split())}") from error
    if arrays["attention"] is None:
        raise UserError(f"{path}: no array 'attention' (samples, queries, tokens)")
    attention, mask = check_attention(arrays["attention"], arrays["mask"], str(path))
    arrays |= {"attention": attention, "mask": mask}
    for name in ("error", "group"):
        if arrays[name] is not None and arrays[name].shape != attention.shape[:1]:
            raise UserError(f"{path}: {name} has shape {arrays[name].shape}, expected ({len(attention)},)")
    if arrays["group"] is not None:
        arrays["group"] = arrays["group"].astype(str)
    if arrays["error"] is not None:
        arrays["error"] = _checked_error(arrays["error"], path)
    return arrays


def _checked_error(error: np.ndarray, path: Path) -> np.ndarray:
    if error.dtype.kind not in "fiub" or not np.isfinite(error).all():
        raise UserError(f"{path}: error must hold finite numbers, one a sample")
    return error.astype(np.float64)


def _measure_arrays(arrays: dict[str, np.ndarray | None]) -> Measured:
    attention, mask = arrays["attention"], arrays["mask"]
    shown = attention
    if mask is not None:
        shown = np.where(_by_query(mask), attention, np.nan)
    statistics = sample_statistics(attention, mask)
    return Measured({"attention": statistics}, {"attention": attention.shape[-1]}, arrays["error"], shown)


def _by_query(mask: np.ndarray) -> np.ndarray:
    """A mask (samples, tokens) or (samples, queries, tokens) as (samples, 1 or queries, tokens)."""
    return mask.reshape(len(mask), -1, mask.shape[-1])


def _npz_notes(files: dict[str, dict]) -> list[str]:
    notes = []
    masks = [file["mask"] for file in files.values()]
    if any(mask is None for mask in masks) != all(mask is None for mask in masks):
        notes.append("only one file has a mask: the two are measured over different tokens")
    elif masks[0] is not None and (_by_query(masks[0]) != _by_query(masks[1])).any():
        notes.append("the two masks differ: the two are measured over different tokens")
    missing = [model for model, file in files.items() if file["error"] is None]
    if missing:
        notes.append(f"no error is known for {' and '.join(missing)}: the finding needs it of both")
    return notes
