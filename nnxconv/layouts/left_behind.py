"""What an optimizer keeps of layers that are arranged anew, where it follows no parameters."""

from collections.abc import Iterable

from nnxconv.errors import CannotHold
from nnxconv.layouts.around import dropping
from nnxconv.layouts.conversion import Conversion
from nnxconv.layouts.located import Located, Survey
from nnxconv.state import Tree, named_as_layers
from nnxconv.tree import Key, in_order, notation, spell


def refuse_left_behind(survey: Survey, conversions: Iterable[tuple[Located, Conversion]]) -> None:
    """Refuses to arrange layers whose moments stand beside all states and would stay as they are.

    Raises:
      CannotHold: there are such; the hint leaves them out.
    """
    keys = [key for key in survey.around if survey.roles[key] == "optimizer"]
    found = dict.fromkeys(
        key
        for _, conversion in conversions
        for key in named_as_layers(keys, conversion.source.groups, conversion.arrangements)
    )
    if not found:
        return
    raise CannotHold(
        "the optimizer's state beside these parameters cannot follow their layers",
        details=[f"{spell(key)}  {notation(survey.tree[key])}" for key in in_order(found)],
        hint=dropping(dict.fromkeys(spell(_whole(key, survey.tree, keys)) for key in found)),
    )


def _whole(key: Key, tree: Tree, optimizers: Iterable[Key]) -> Key:
    """The outermost subtree that has a leaf, and nothing but an optimizer's."""
    others = tree.keys() - set(optimizers)
    above = {other[:size] for other in others for size in range(len(other) + 1)}
    return next(key[:size] for size in range(1, len(key) + 1) if key[:size] not in above)
