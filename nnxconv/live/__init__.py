"""Trees of live or abstract JAX values: what their leaves are, and where they lie.

The only part of nnxconv that knows jax and flax; both are imported when they are needed.
"""

from nnxconv.live.models import call, is_python_name, state_of
from nnxconv.live.modules import update, variables
from nnxconv.live.placement import is_abstract, place, refuse_wide, regions_of
from nnxconv.live.template import Template, template_of

__all__ = [
    "Template",
    "call",
    "is_abstract",
    "is_python_name",
    "place",
    "refuse_wide",
    "regions_of",
    "state_of",
    "template_of",
    "update",
    "variables",
]
