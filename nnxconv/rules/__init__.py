"""Rename rules: ordered patterns of keys, what becomes of them, and what is done to the arrays.

```
pattern   encoder.Dense_{i}.kernel: what a key must look like, and what is left open
steps     transpose, split, concat, ...: what is done to arrays, as data, with inverses
rule      Rule and Rules: the set, and its inverse
apply     to one tree
renaming  to a training state, its moments and its layer groups
toml      the file format
builtin   the sets that come with nnxconv, by name
```
"""

from nnxconv.rules.builtin import asked_rules, builtin_rules, read_rules
from nnxconv.rules.renaming import Renamed, rename
from nnxconv.rules.rule import Rule, Rules
from nnxconv.rules.toml import parse_rules, write_rules

__all__ = [
    "Renamed",
    "Rule",
    "Rules",
    "asked_rules",
    "builtin_rules",
    "parse_rules",
    "read_rules",
    "rename",
    "write_rules",
]
