"""Attention as numbers: statistics of its rows, comparison of two models, Swin's windows, Grad-CAM."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
