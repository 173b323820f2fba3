"""How well scores agree with people: correlations, logistic mappings, intervals, summaries, tests between models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
