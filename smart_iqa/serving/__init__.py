"""A model as a server: a page and a JSON API that score images, all in memory.

a request -[uploads]-> named bytes -[engine]-> pixels, crops -[batches]-> score, stage weights, map -[app]-> JSON
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
