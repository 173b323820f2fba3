"""What `torch.hub.load(REPOSITORY, "smart_iqa")` gives: a model that scores images, and teaches what makes them.

model = torch.hub.load("path/of/this/checkout", "smart_iqa", source="local")
model.score("photo.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smart_iqa import Scorer

dependencies = ["torch", "timm", "accelerate", "safetensors", "pandas", "PIL", "yaml", "lazy_loader"]


def smart_iqa(checkpoint: str = "default", device: str = "auto", **changes) -> Scorer:
    """The model that comes with the package, or a run: see `smart_iqa.load_model`, which takes the same arguments."""
    from smart_iqa import load_model

    return load_model(checkpoint, device, **changes)
