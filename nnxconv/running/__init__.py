"""A plan carried out: windows of blocks within the memory, threads, events, the commit last.
`cluster` has several processes share it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
