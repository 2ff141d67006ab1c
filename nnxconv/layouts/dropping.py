"""What `--drop` leaves out, by the keys that leaves have in the tree or in the state."""

from collections.abc import Sequence

from nnxconv.errors import BadInput
from nnxconv.layouts.located import Survey
from nnxconv.layouts.stored_arrays import names_of, stored_names
from nnxconv.layouts.subset import Subset
from nnxconv.tree import Key, fits_no_key, matches, spell


def without_stored(part: Subset, globs: Sequence[str]) -> tuple[Subset, list[str]]:
    """The part without leaves whose keys, or what they stand in, a glob fits; and unused globs."""
    gone: dict[Key, str] = {}
    used: set[str] = set()
    for key in part.tree:
        glob = _fitting(key, globs)
        if glob is not None:
            gone[key] = f"--drop {glob}"
            used.add(glob)
    return part.without(gone), [glob for glob in globs if glob not in used]


def without_canonical(part: Subset, survey: Survey, globs: Sequence[str]) -> Subset:
    """The part without leaves of its states whose canonical keys a glob fits.

    Raises:
      BadInput: a glob fits nothing, or some layers of a stack alone.
    """
    found: dict[Key, set[str | None]] = {}
    keys: list[Key] = []
    for located in survey.states:
        names = stored_names(located)
        for key, leaf in located.understood.state.leaves().items():
            glob = _fitting(key, globs)
            keys.append(key)
            for name in names_of(leaf):
                if name in names:
                    found.setdefault(names[name], set()).add(glob)
    gone = {
        key: f"--drop {next(iter(g))}" for key, g in found.items() if g - {None} and None not in g
    }
    partly = [spell(key) for key, g in found.items() if g - {None} and None in g]
    if partly:
        raise BadInput("`--drop` fits some layers of a stack, which is one array", details=partly)
    used = {glob for globs_of in found.values() for glob in globs_of}
    unused = [glob for glob in globs if glob not in used]
    if unused:
        raise BadInput(
            f"--drop: {fits_no_key(unused[0], keys)}",
            hint="`nnxconv inspect PATH --tree` lists the keys",
        )
    return part.without(gone)


def _fitting(key: Key, globs: Sequence[str]) -> str | None:
    names = [spell(key[:size]) for size in range(1, len(key) + 1)]
    return next((glob for glob in globs if any(matches(name, glob) for name in names)), None)
