"""Keys and their one spelling; views: what arrays are, without their bytes; byte sizes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
