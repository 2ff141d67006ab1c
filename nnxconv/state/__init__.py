"""The canonical state that every layout decodes to: parameters, optimizer, step, other variables.

Layer groups are found in it, taken apart (`unstack`) and put together (`arrange`). A group is a run
of equal modules that a tree holds in one of three arrangements:

```
Apart("suffix")     decoder/layers_0/..., decoder/layers_1/...
Apart("index")      decoder/layers/0/...,  decoder/layers/1/...
Apart("sequence")   decoder/layers/[0]/..., decoder/layers/[1]/...: a list or tuple
Stacked(axis)       decoder/layers/...                 every leaf has a layer axis
Blocks(axis, P)     decoder/layers/layers_0..P-1/...   layer b*P + j is slot b of layers_j
                    decoder/layers_remainder/layers_0..R-1/...   the last R layers, not stacked
                    or as its family has them (`families.toml`)
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
