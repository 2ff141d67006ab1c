"""Rename rules proposed from two trees: which leaf of a checkpoint is which leaf of another model.

```
families     leaves whose keys differ in numbers only
names        how alike two module paths are
pairs        which family is which, with the evidence; and what is not certain
generalise   from pairs to rules, for whole modules and with numbers left open
hints        what is left over may fit with a step
proposal     all of it, tried before anyone is told
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
