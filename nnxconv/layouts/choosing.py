"""Parts of a tree, as a user names them: a subtree, what to leave out, a copy, one replica."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnxconv.errors import BadInput
from nnxconv.layouts.dropping import without_canonical, without_stored
from nnxconv.layouts.located import Survey
from nnxconv.layouts.params_from import with_params_from
from nnxconv.layouts.replicas import one_replica
from nnxconv.layouts.subset import Subset
from nnxconv.layouts.survey_options import SurveyOptions
from nnxconv.layouts.surveying import survey
from nnxconv.state import Tree
from nnxconv.tree import Key, spell


@dataclass(frozen=True)
class Chosen:
    """A part of a tree.

    Attributes:
      survey: of the part.
      stored: for each of its keys, the key of the whole tree.
      left_out: keys of the whole tree that are not in it, with the reason.
    """

    survey: Survey
    stored: Mapping[Key, Key]
    left_out: Mapping[Key, str] = field(default_factory=dict)


def choose_part(
    tree: Tree,
    how: SurveyOptions,
    *,
    at: str | None = None,
    drop: Sequence[str] = (),
    params_from: str | None = None,
    replica: int | None = None,
) -> Chosen:
    """The part of a tree that is asked for.

    Raises:
      BadInput: a name or glob fits nothing, or the replicas are not what they should be.
    """
    part = Subset(tree, {key: key for key in tree})
    globs = list(drop)
    part = _at(part, at, how) if at else part
    if globs:
        part, globs = without_stored(part, globs)
    if replica is not None:
        part = replace(part, tree=one_replica(part.tree, replica))
    how = _how(how, at)
    found = survey(part.tree, how)
    if globs:
        part = without_canonical(part, found, globs)
        found = survey(part.tree, how)
    if params_from is not None:
        part = with_params_from(part, found, params_from)
        found = survey(part.tree, how)
    return Chosen(found, part.stored, part.left_out)


def _how(how: SurveyOptions, at: str | None) -> SurveyOptions:
    """How a part is read: what is recorded of the whole does not hold for it."""
    return replace(how, custom_metadata={}, items=()) if at else how


def _at(whole: Subset, at: str, how: SurveyOptions) -> Subset:
    """The subtree at a key; the whole state where one is said to stand there.

    Raises:
      BadInput: there is nothing, or a single leaf.
    """
    tree = whole.tree
    prefix = _prefix(tree, at)
    if prefix is None:
        states = [spell(one.at) for one in survey(tree, how).states if one.at]
        names = states or [spell((name,)) for name in dict.fromkeys(k[0] for k in tree if k)]
        raise BadInput(
            f"there is no subtree at `{at}`",
            details=names,
            hint="`nnxconv inspect PATH --tree` lists the keys",
        )
    size = len(prefix)
    stored = {key[size:]: key for key in tree if key[:size] == prefix}
    if any(key[:size] != prefix for key in tree):
        states = [one for one in survey(tree, how).states if one.at == prefix]
        odd = [k for one in states for k in one.stored.values() if k[:size] != prefix]
        if odd and not any(one.rivals for one in states):
            stored = _by_itself([key for one in states for key in one.stored.values()], tree)
    part = {key: tree[old] for key, old in stored.items()}
    kept = set(stored.values())
    gone = {key: f"--at {at}" for key in tree if key not in kept}
    return Subset(part, stored, gone)


def _by_itself(keys: Sequence[Key], tree: Tree) -> dict[Key, Key]:
    """Where a state stands alone: of lists with an element for each state, only its own is left.

    `models[1]` and `optimizers[1]` are `models` and `optimizers` then: lists have no gaps.
    """
    mine, every = _numbers_below(keys), _numbers_below(tree)
    lone = {above for above, numbers in mine.items() if len(numbers) == 1 < len(every[above])}
    return {
        tuple(part for size, part in enumerate(key) if key[:size] not in lone): key for key in keys
    }


def _numbers_below(keys: Iterable[Key]) -> dict[Key, set[int]]:
    """The places in each list."""
    found: dict[Key, set[int]] = defaultdict(set)
    for key in keys:
        for size, part in enumerate(key):
            if isinstance(part, int):
                found[key[:size]].add(part)
    return found


def _prefix(tree: Tree, at: str) -> Key | None:
    """The key of a subtree that is spelled so."""
    for key in tree:
        for size in range(1, len(key)):
            if spell(key[:size]) == at:
                return key[:size]
    return None
