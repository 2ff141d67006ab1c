"""A tree with its meaning: its states and their copies, where they stand, and all roles."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from nnxconv.errors import UnknownLayout
from nnxconv.layouts.parts import is_rng_state
from nnxconv.layouts.placement import Placement
from nnxconv.layouts.understanding import Understood
from nnxconv.state import LayerGroup, Role, Tree, under
from nnxconv.tree import Key, Leaf, Literal, first_source


@dataclass(frozen=True)
class Located:
    """A state in a tree.

    Attributes:
      at: where it stands; the key of its parameters where others stand there too.
      placement: which of the tree's keys are which keys of its layout.
      understood: its meaning.
      stored: for each of its keys in the layout, the key in the tree.
      placements: where it stood in other layouts, by name.
      rivals: for each part of the parameters, others that its optimizer may follow as well.
      optimizers: where its optimizers stand.
      copy_of: for a second copy of parameters, where the state stands that it is a copy of.
    """

    at: Key
    placement: Placement
    understood: Understood
    stored: Mapping[Key, Key]
    copy_of: Key | None = None
    placements: Mapping[str, Placement] = field(default_factory=dict)
    rivals: Mapping[Key, tuple[Key, ...]] = field(default_factory=dict)
    optimizers: tuple[Key, ...] = ()

    @cached_property
    def own_roles(self) -> dict[Key, Role]:
        """The role of each of its leaves in its layout, by key of the tree."""
        by_name: dict[str, Role] = {
            first_source(leaf).name: _canonical_role(key, leaf)
            for key, leaf in self.understood.as_stored.leaves().items()
            if not isinstance(leaf, Literal)
        }
        return {
            stored: by_name.get(first_source(leaf).name, "other")
            for key, stored in self.stored.items()
            if not isinstance(leaf := self.understood.tree[key], Literal)
        }


@dataclass(frozen=True)
class Survey:
    """A tree with its meaning.

    Attributes:
      tree: the whole tree.
      states: its states, in order.
      copies: second copies of their parameters.
      around: what belongs to none of them, by key of the tree.
      roles: of every leaf.
      problem: where there is no state, why not.
      readings: what the tree could be, and what speaks against it.
    """

    tree: Tree
    states: tuple[Located, ...]
    copies: tuple[Located, ...] = ()
    around: Tree = field(default_factory=dict)
    roles: Mapping[Key, Role] = field(default_factory=dict)
    problem: UnknownLayout | None = None

    @property
    def layout(self) -> str:
        """The layouts of its states, each once; `unknown` where it has none."""
        return (
            " and ".join(dict.fromkeys(one.understood.layout for one in self.states)) or "unknown"
        )

    @property
    def is_plain(self) -> bool:
        """True where the whole tree is one state in a known layout."""
        return (
            len(self.states) == 1
            and not self.around
            and not self.copies
            and self.states[0].placement.is_plain
        )

    def head(self, located: Located) -> Key:
        """What the canonical keys of a state begin with, where there are several."""
        if located.copy_of is not None:
            return ("aux", *located.at)
        return located.at if len(self.states) > 1 else ()

    def leaves(self) -> dict[Key, Leaf]:
        """Every leaf under its canonical key; where there is no state, under its own."""
        if not self.states:
            return dict(self.tree)
        found: dict[Key, Leaf] = {}
        for located in self.states:
            found |= under(self.head(located), located.understood.state.leaves())
        for copy in self.copies:
            found |= copy_leaves(copy)
        return found | under(OTHER, self.around)

    def undone(
        self, tree: Tree, real: Mapping[Key, Key], placement: Callable[[Located], Placement]
    ) -> "Survey":
        """The same of the tree as it is, where this one's keys are only thought.

        Args:
          tree: as it is.
          real: for each key in thought, the key in it.
          placement: where in it a state stands, whose `stored` keys are real.
        """

        def undone(one: Located) -> Located:
            one = replace(one, stored={key: real[old] for key, old in one.stored.items()})
            return replace(one, placement=placement(one))

        return replace(
            self,
            tree=tree,
            states=tuple(map(undone, self.states)),
            copies=tuple(map(undone, self.copies)),
            around={real[key]: leaf for key, leaf in self.around.items()},
            roles={real[key]: role for key, role in self.roles.items()},
        )

    def groups(self) -> list[LayerGroup]:
        """The layer groups of all states, by the keys that their leaves have."""
        return [
            replace(group, key=(*self.head(located), *group.key))
            for located in (*self.states, *self.copies)
            for group in located.understood.groups
        ]


OTHER: Key = ("other",)
"""What the keys begin with of leaves that belong to no state."""


def copy_leaves(copy: Located) -> dict[Key, Leaf]:
    """The leaves of a second copy as variables: `aux.ema_params.Dense_0.kernel`."""
    state = copy.understood.state
    aux = {("aux", *copy.at, *key[1:]): leaf for key, leaf in state.aux.items()}
    return {**under(("aux", *copy.at), state.params), **aux}


def _canonical_role(key: Key, leaf: Leaf) -> Role:
    """The role of a leaf by its canonical key."""
    match key[0]:
        case "params":
            return "parameters"
        case "opt_state":
            return "optimizer"
        case "step":
            return "step"
    return "rng" if is_rng_state(key[1:], leaf) else "variables"


def survey_of(
    tree: Tree,
    states: Sequence[Located],
    copies: Sequence[Located],
    roles: Mapping[Key, Role],
    around: Iterable[Key] | None = None,
) -> Survey:
    """The survey of a tree with these states: roles are those of the states' meaning."""
    roles = dict(roles)
    claimed: set[Key] = set()
    for located in (*states, *copies):
        for key, role in located.own_roles.items():
            if roles.get(key) == "step" and role == "optimizer":
                continue  # where several optimizers follow one model, each counts
            if located.copy_of is not None and role != "rng":
                role = "optimizer" if roles.get(key) == "optimizer" else "variables"
            roles[key] = role
        claimed.update(located.stored.values())
    rest = [key for key in tree if key not in claimed] if around is None else list(around)
    for key in tree:
        roles.setdefault(key, "other")
    for key in rest:
        if roles[key] == "parameters":
            roles[key] = "other"
    return Survey(tree, tuple(states), tuple(copies), {k: tree[k] for k in rest}, roles)
