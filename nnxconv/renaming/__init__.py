"""Rename rules: ordered patterns of keys, what becomes of them, and what is done to the arrays.

```
pattern      encoder.Dense_{i}.kernel: what a key must look like, and what is left open
steps        transpose, split, concat, ...: what is done to arrays, as data, with inverses
rule         Rule and Rules: the set, and its inverse
apply        to one tree
states       to a training state, its moments and its layer groups
understood   to a checkpoint that is understood; checkpoints: as `--rename` and `--like` ask
toml         the file format
builtin      the sets that come with nnxconv, by name
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
