"""Apply rules to a tree whose meaning is not known: to its keys as they are stored."""

from nnxconv.errors import RuleError
from nnxconv.renaming.apply import apply, fits
from nnxconv.renaming.rule import Rules
from nnxconv.state import Tree
from nnxconv.tree import Key, Leaf


def renamed_tree(tree: Tree, rules: Rules) -> dict[Key, Leaf]:
    """The tree with its keys renamed.

    Raises:
      RuleError: keys collide, or rules fit nothing; all are listed.
    """
    rules = rules.counted(list(tree))
    found = fits(tree, rules)
    problems = rules.unused({fit.rule for fit in found.values()}, list(tree))
    applied = apply(tree, rules, found)
    if problems or applied.problems:
        raise RuleError(
            "the rename rules do not fit",
            where=rules.name,
            details=[*problems, *applied.problems],
        )
    return applied.tree
