"""Several processes, on many machines or on one, that do one piece of work together.

Their launcher starts one on each machine; `jax.distributed` makes them find each other, and keeps
the few texts that they tell each other. JAX is imported when a process joins, not before.
"""

from nnxconv.cluster.join import joined
from nnxconv.cluster.service import part, why_aborted

__all__ = ["joined", "part", "why_aborted"]
