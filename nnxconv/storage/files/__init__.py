"""Files and directories, on a disk or in a bucket: operations, listings, JSON, locks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
