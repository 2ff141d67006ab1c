"""Into live or abstract JAX values: what their leaves are, where they lie, what fits. The only code
besides `running.cluster` that imports jax and flax, and only when they are needed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
