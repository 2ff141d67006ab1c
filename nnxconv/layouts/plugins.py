"""Our codecs, and those that other packages announce as entry points (see `layouts`)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nnxconv.errors import BadInput
from nnxconv.layouts.form import Codec
from nnxconv.layouts.names import announced
from nnxconv.state import load_point, package_of, repair_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

MEMBERS = ("name", "family", "spelling", "recognise", "decode", "default_form", "misfits", "encode")
"""What a codec has, as in `form.Codec`."""


class Codecs(Mapping[str, Codec]):
    """Our own codecs and those of other packages, which are imported when they are asked for."""

    def __init__(self, own: tuple[Codec, ...]) -> None:
        self._own = {codec.name: codec for codec in own}
        self._loaded: dict[str, Codec] = {}

    def __getitem__(self, name: str) -> Codec:
        if name in self._own:
            return self._own[name]
        if name not in self._loaded:
            self._loaded[name] = _load(announced()[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from announced()

    def __len__(self) -> int:
        return len(self._own) + len(announced())

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in announced()


def _load(point: "EntryPoint") -> Codec:
    """The codec of another package.

    Raises:
      BadInput: it cannot be imported, or is no codec.
    """
    codec: Any = load_point(point, f"the layout `{point.name}`")
    problems = _problems(point, codec)
    if problems:
        raise BadInput(
            f"the layout `{point.name}` of `{package_of(point)}` is not a codec",
            where=point.value,
            details=problems,
            hint=repair_of(point),
        )
    return codec


def _problems(point: "EntryPoint", codec: object) -> list[str]:
    """What keeps an object from being the codec that its entry point announces."""
    problems = [f"it has no `{member}`" for member in MEMBERS if not hasattr(codec, member)]
    name = getattr(codec, "name", point.name)
    if name != point.name:
        problems.append(f"its `name` is `{name}`")
    for member, allowed in (("family", ("linen", "nnx")), ("spelling", ("suffix", "index"))):
        if hasattr(codec, member) and getattr(codec, member) not in allowed:
            told = " or ".join(f"`{one}`" for one in allowed)
            problems.append(f"its `{member}` is `{getattr(codec, member)}`, not {told}")
    return problems
