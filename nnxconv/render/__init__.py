"""Results as text, JSON and HTML. Nothing is computed here that is not shown."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
