"""The installed Orbax as a witness: it reads what we wrote, before that is committed.

Nothing else here needs Orbax, which brings JAX; where it is not installed nothing is asked.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.orbax.item import array_name
from nnxconv.storage.orbax.new_arrays import NewArray
from nnxconv.storage.zarr import parse_format
from nnxconv.tree import Key, Literal


def refuse_unread(
    item: epath.Path, arrays: Iterable[NewArray], literals: Iterable[tuple[Key, Literal]]
) -> None:
    """Lets Orbax read the structure of an item and the metadata of its arrays.

    Raises:
      DamagedCheckpoint: it cannot, or finds another tree, shape or element type.
    """
    if find_spec("orbax") is None or find_spec("orbax.checkpoint") is None:
        return
    from orbax.checkpoint import PyTreeCheckpointHandler

    try:
        found = _flat(PyTreeCheckpointHandler().metadata(item).tree)
    except Exception as error:
        raise DamagedCheckpoint(
            "Orbax cannot read the new checkpoint; nothing was committed",
            where=str(item),
            details=[f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"],
        ) from error
    expected = {array_name(array.key): _told(array) for array in arrays}
    expected |= {array_name(key): None for key, literal in literals}
    wrong = sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or expected[name] not in (None, found[name])
    )
    if wrong:
        raise DamagedCheckpoint(
            "Orbax reads other arrays than were written; nothing was committed", details=wrong
        )


def _told(array: NewArray) -> tuple[tuple[int, ...], str] | None:
    """Shape and element type; None where Orbax's metadata has none, or that of a key."""
    if array.prng_impl is not None or array.value_type == "scalar":
        return None
    found = parse_format(array.zarr_format, dict(array.metadata))
    return found.shape, found.dtype


def _flat(tree: Any, key: tuple[str, ...] = ()) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and element type of each leaf, and of each empty container, by its name."""
    if isinstance(tree, dict) and tree:
        parts = tree.items()
    elif isinstance(tree, (list, tuple)) and tree:
        parts = enumerate(tree)
    else:
        shape, dtype = getattr(tree, "shape", None), getattr(tree, "dtype", None)
        return {".".join(key): (tuple(shape or ()), getattr(dtype, "name", str(dtype)))}
    found: dict[str, Any] = {}
    for part, inner in parts:
        found |= _flat(inner, (*key, str(part)))
    return found
