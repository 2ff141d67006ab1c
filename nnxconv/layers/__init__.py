"""Layer groups: find them in a state, take stacks apart, and put layers together again.

A group is a run of equal modules that a tree holds in one of three arrangements:

```
Apart("suffix")     decoder/layers_0/..., decoder/layers_1/...
Apart("index")      decoder/layers/0/...,  decoder/layers/1/...
Stacked(axis)       decoder/layers/...                 every leaf has a layer axis
Blocks(axis, P)     decoder/layers/layers_0..P-1/...   layer b*P + j is slot b of layers_j
                    decoder/layers_remainder/layers_0..R-1/...   the last R layers, not stacked
```

In a canonical state the layers are apart, each under an int: `decoder.layers[i]...`. `unstack`
brings a state there and says how its groups were arranged; `arrange` takes it from there to any
arrangement. Parameters, every parameter-shaped tree of the optimizer and the other variables of
a layer move together.
"""

from nnxconv.layers.arrange import arrange, choose
from nnxconv.layers.groups import (
    DEFAULT_AXIS,
    DEFAULT_NAMES,
    Apart,
    Arrangement,
    Blocks,
    LayerGroup,
    Spelling,
    Stacked,
    names_in,
)
from nnxconv.layers.unstack import unstack

__all__ = [
    "DEFAULT_AXIS",
    "DEFAULT_NAMES",
    "Apart",
    "Arrangement",
    "Blocks",
    "LayerGroup",
    "Spelling",
    "Stacked",
    "arrange",
    "choose",
    "names_in",
    "unstack",
]
