"""Rename rules proposed from two trees: which leaf of a checkpoint is which leaf of another model.

```
modules      a tree as modules, in the layers in which they are repeated
projects     what projects call theirs; vocabulary: what a name means; roles: of a whole tree's
scopes       which layers are which; nesting: of layers within layers
readings     the steps that lead from one shape to another; fused: from one array to several
orientation  whether arrays are turned, decided once for all of a kind
fitting      which two modules can be one another; parting: which one is several
search       the pairs that are certain; scope_search: in two scopes; pairs: as they are told
fingerprints what an array holds, whatever the order of its elements
values       what a search by values asks for and finds; valued: the search, in rounds
rounds       pairs of leaves that hold the same; joins: of parts with the array that has them all
vicinity     which of several that hold the same; parts: which leaves add up to another
arrangements every way to make arrays of others, of which values choose; value_pairs: as modules
known        pairs by the rules of a family; doubts: where conventions of projects differ
names        how alike two module paths are; proposing: what is left, by that
generalise   from pairs to rules, for whole modules and with numbers left open
proposal     all of it, tried before anyone is told
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
