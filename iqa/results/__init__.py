"""Results files: their one schema, what is read back from them, and the check of every number."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
