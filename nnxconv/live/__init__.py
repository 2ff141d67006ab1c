"""Trees of live or abstract JAX values: what their leaves are, and where they lie.

The only part of nnxconv that knows jax and flax; both are imported when they are needed.
"""

from nnxconv.live.placement import is_abstract, place, refuse_wide, regions_of
from nnxconv.live.template import Template, template_of

__all__ = ["Template", "is_abstract", "place", "refuse_wide", "regions_of", "template_of"]
