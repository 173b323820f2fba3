"""Lets `import torchvision` (and so `import timm`) work beside a CPU-only torch.

The package index ships torchvision as a CUDA build. Beside a CPU-only torch its compiled
operators do not load, and the import then stops with "operator torchvision::nms does not exist"
although nothing here uses them. Declaring the two names is enough. Where the operators do load,
as on any machine with a matching GPU build, nothing is declared.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MISSING_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library that is collected takes its names with it


def declare_missing_operators() -> bool:
    """Declare torchvision's operators if its compiled ones cannot be loaded; call before importing timm.

    Returns:
        True if the names had to be declared, now or by an earlier call.
    """
    import torch

    package = importlib.util.find_spec("torchvision")
    if _declared or package is None:
        return bool(_declared)
    compiled = PathFinder.find_spec("_C", list(package.submodule_search_locations))
    try:
        if compiled is not None:
            torch.ops.load_library(compiled.origin)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in _MISSING_SCHEMAS.values():
            library.define(schema)
        _declared.append(library)
    return bool(_declared)
