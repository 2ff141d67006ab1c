"""Parts of a state that the user does not want: `--without`, and `without=` when loading."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nnxconv.errors import BadInput
from nnxconv.state import RNGS, TrainState
from nnxconv.tree import Key, spell


def refuse_missing_parts(
    without: Iterable[str], states: Sequence[TrainState], copies: Iterable[Key] = ()
) -> None:
    """Refuses to leave out a collection that is not there, for its name may be misspelt.

    Whole parts and RNG state may be left out whether they are there or not: scripts do.

    Raises:
      BadInput: no state has the collection, and no second copy is called so; it lists all.
    """
    there = [key for state in states for key in state.aux] + list(copies)
    names = dict.fromkeys(spell(("aux", key[0])) for key in there)
    for name in without:
        is_usual = name in ("aux", f"aux.{RNGS}", "opt_state", "step")
        if is_usual or any(is_excluded(key, (name,)) for key in there):
            continue
        if name.startswith("aux"):
            raise BadInput(
                f"`--without {name}` leaves nothing out: there is no such collection",
                details=list(names),
            )


def is_excluded(aux_key: Key, without: Sequence[str]) -> bool:
    """True for a variable that `--without` names, or whose collection or module it names."""
    return any(spell(("aux", *aux_key)[:size]) in without for size in range(1, len(aux_key) + 2))


def leave_out(
    state: TrainState, without: Sequence[str], option: str = ""
) -> tuple[TrainState, dict[Key, str]]:
    """The state without the parts that the user does not want, by `--without` or another option."""
    left_out: dict[Key, str] = {}
    for name in without:
        part = name.partition(".")[0]
        reason = option or f"--without {name}"
        if part not in ("aux", "opt_state", "step"):
            raise BadInput(
                f"`--without {name}` is not a part of a state that can be left out",
                hint="`aux`, one of its collections such as `aux.rngs`, `opt_state` or `step`",
            )
        if part == "aux":
            gone = [key for key in state.aux if is_excluded(key, [name])]
            state = state.with_aux({k: v for k, v in state.aux.items() if k not in set(gone)})
            left_out |= {("aux", *key): reason for key in gone}
        elif part == "opt_state":
            gone = [key for key in state.leaves() if key[0] == "opt_state"]
            left_out |= dict.fromkeys(gone, reason)
            state = replace(state, opt_state=None)
        elif state.step is not None:
            left_out[("step",)] = reason
            state = replace(state, step=None)
    return state, left_out
