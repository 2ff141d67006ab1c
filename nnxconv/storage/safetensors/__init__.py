"""safetensors: named arrays in files whose headers say where the bytes of each lie."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
