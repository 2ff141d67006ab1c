"""msgpack trees of Flax and of the Orbax of 2023: where in the file the bytes of each array lie."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
