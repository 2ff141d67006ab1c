"""Second copies of the parameters, such as an average: converted as they are."""

from collections.abc import Callable, Iterator

from nnxconv.layouts.conversion import Conversion, convert_tree
from nnxconv.layouts.located import Located, Survey
from nnxconv.layouts.names import ALONE
from nnxconv.layouts.options import Options
from nnxconv.layouts.understanding import Understood

_LAYOUTS = {
    **dict.fromkeys(("linen", "linen-variables", "maxtext"), "linen-variables"),
    "nnx-pure": "nnx-pure",
}
"""The layout of copies beside a state: that of parameters alone; `nnx` of all others."""


def convert_copies(
    survey: Survey,
    of: Located,
    main: Conversion,
    rename: Callable[[Understood, Options], Understood] | None = None,
) -> Iterator[tuple[Located, Conversion]]:
    """The copies of a state's parameters, arranged as they are, their types as they were.

    Args:
      survey: the tree in which the state stands.
      of: the state.
      main: its conversion; a layout that has room for one state alone keeps no copies.
      rename: gives the copies the names that the parameters were given.
    """
    if main.layout in ALONE:
        return
    options = Options(to=_LAYOUTS.get(main.layout, "nnx"))
    for copy in survey.copies:
        if copy.copy_of == of.at:
            source = copy.understood if rename is None else rename(copy.understood, options)
            yield copy, convert_tree(source, options, None, main.arrangements, is_copy=True)
