"""Several processes, on many machines or on one, that do one piece of work together.

Their launcher starts one on each machine; `jax.distributed` makes them find each other, and keeps
the few texts that they tell each other. JAX is imported when a process joins, not before.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
