"""npz files of numpy: a zip of arrays, whose bytes lie in it as they are unless compressed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
