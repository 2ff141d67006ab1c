"""Google Cloud Storage: client and retries, objects on condition, locks, and what errors mean."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
