"""Find rename rules: which leaf of a checkpoint is which leaf of another model.

```
families     leaves whose keys differ in numbers only
names        how alike two module paths are
pairs        which family is which, with the evidence; and what is not certain
generalise   from pairs to rules, for whole modules and with numbers left open
hints        what is left over may fit with a step
proposal     all of it, tried before anyone is told
```
"""

from nnxconv.matching.proposal import Proposal, propose, shapes_of

__all__ = ["Proposal", "propose", "shapes_of"]
