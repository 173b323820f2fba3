"""Databases without their layouts: tables, label files, images, splits, near-duplicates, caches on disk."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
