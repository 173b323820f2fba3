"""Blind image quality assessment: `load_model(run).score("photo.jpg")`. Importing this imports no torch."""

import lazy_loader

import iqa  # noqa: F401  (what it sets has to be set before torch is imported)

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
