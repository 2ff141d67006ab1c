"""How one array is stored: zarr 2 and 3 metadata, and the TensorStore specs that open it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
