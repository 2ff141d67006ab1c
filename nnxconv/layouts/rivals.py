"""Optimizers that follow one of several parameters, which neither names nor shapes tell."""

from collections.abc import Sequence
from shlex import quote

from nnxconv.errors import BadInput
from nnxconv.layouts.located import Located
from nnxconv.tree import Key, spell


def unsure_of(states: Sequence[Located]) -> list[str]:
    """Which optimizers fit several parameters equally: `` `opt1` fits `D` and `G` equally ``."""
    models = " and ".join(f"`{spell(key)}`" for key in _models(states))
    return [f"`{spell(key)}` fits {models} equally" for key in _optimizers(states)]


def refuse_rivals(states: Sequence[Located]) -> None:
    """Refuses states whose optimizers may follow other parameters as well.

    Raises:
      BadInput: each optimizer is named, and what it fits.
    """
    optimizers, models = _optimizers(states), _models(states)
    if not optimizers:
        return
    part, first = spell(models[0]), spell(optimizers[0])
    gone = [quote(spell(key)) for key in (*models[1:], *optimizers[1:])]
    drops = " ".join(f"--drop {name}" for name in gone)
    raise BadInput(
        "neither names nor shapes tell which parameters an optimizer follows",
        details=unsure_of(states),
        hint=f"`{drops}` keeps `{part}` and `{first}`; `--at {quote(part)}` takes parameters alone",
    )


def _optimizers(states: Sequence[Located]) -> list[Key]:
    return [key for one in states if one.rivals for key in one.optimizers]


def _models(states: Sequence[Located]) -> list[Key]:
    """The parameters that may be meant, each once."""
    every = (key for one in states for pair in one.rivals.items() for key in (pair[0], *pair[1]))
    return sorted(dict.fromkeys(every), key=spell)
