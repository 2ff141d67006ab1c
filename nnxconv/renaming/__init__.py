"""Rename rules: ordered patterns of keys, what becomes of them, and what is done to the arrays.

```
pattern      encoder.Dense_{i}.kernel: what a key must look like, and what is left open
steps        transpose, split, concat, ...: what is done to arrays, as data, with inverses
rule         Rule and Rules: the set, and its inverse
apply        to one tree
states       to a training state, its moments and its layer groups
understood   to a checkpoint that is understood; checkpoints: as `--rename` and `--like` ask
toml         the file format
builtin      the sets that come with nnxconv, by name; families: those of models in blocks
hugging_face sets made from a `config.json` and a template, hf-NAME.toml.j2; crossing: they are
             followed; wholeness: all arrays of a model have to be there
numbers      steps that multiply, divide and add; shapes: those that the sets need
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
