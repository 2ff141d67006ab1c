"""What `like` has beside its state: its own streams of random numbers, metrics, a second copy."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeGuard

from nnxconv.errors import Mismatch
from nnxconv.layouts import is_rng_state
from nnxconv.loading.leniency import Lenient
from nnxconv.loading.placement import is_abstract
from nnxconv.loading.same_tree import are_alike
from nnxconv.loading.template import Template
from nnxconv.state import Tree, is_stored
from nnxconv.tree import Key, Leaf, Literal, View, counted, matches, notation, spell


@dataclass
class Beside:
    """What becomes of those leaves, by key of `like`.

    Attributes:
      views: what the checkpoint has under the same keys.
      missing: what is not there, which the user allows.
      notes: which RNG state is kept from `like`.
    """

    views: dict[Key, View] = field(default_factory=dict)
    missing: list[Key] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def beside(template: Template, own: Collection[Key], stored: Tree, lenient: Lenient) -> Beside:
    """What becomes of the leaves of `like` whose keys are not in `own`, those of its state.

    Raises:
      Mismatch: the checkpoint has not got them, or in another shape or type.
    """
    done = Beside()
    lacking: list[str] = []
    for key, leaf in template.tree.items():
        if key in own or not is_stored(leaf):
            continue
        there = stored.get(key)
        if _fits(there, leaf):
            done.views[key] = there
        elif is_rng_state(key, leaf) and there is None and not is_abstract(template.leaves[key]):
            done.notes.append(f"kept from `like`: 1 array of `{spell(('aux', *key))}`")
        elif any(matches(spell(key), glob) for glob in lenient.missing):
            done.missing.append(key)
        else:
            lacking.append(f"{spell(key)}  {notation(leaf)}  only in `like`")
    if lacking:
        raise Mismatch(
            f"{counted(len(lacking), 'leaf', 'leaves')} of `like` beside its state"
            " are not in the checkpoint",
            details=lacking,
            hint="`missing=[...]` names what `like` may keep",
        )
    return done


def _fits(there: Leaf | None, leaf: Leaf) -> TypeGuard[View]:
    if isinstance(there, Literal | None) or isinstance(leaf, Literal):
        return False
    return are_alike(there, leaf)
