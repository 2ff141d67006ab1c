"""Orbax checkpoints: steps and items are located and opened, arrays and chunks are read, new items
are written under a temporary name and committed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
