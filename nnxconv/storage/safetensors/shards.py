"""Which arrays go into which file, and what stands before them there."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnxconv.storage import TENSORS_FILE, TENSORS_INDEX
from nnxconv.storage.files import placed
from nnxconv.storage.safetensors.header import METADATA, NAMES, Tensor
from nnxconv.tree import Shape, item_bytes

INDEX = f"model{TENSORS_INDEX}"
_ALIGNMENT = 8


@dataclass(frozen=True)
class Shard:
    """One file: its name, its header as bytes, and where its arrays lie."""

    file: str
    header: bytes
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors.values())


def shards_of(
    arrays: Sequence[tuple[str, str, Shape]], most_bytes: int, file: str = ""
) -> list[Shard]:
    """The files for arrays of these names, types and shapes, in their order.

    Args:
      arrays: name, type and shape of each.
      most_bytes: of the arrays in one file; one that is larger has a file for itself.
      file: the name of the only file; else they are called as `transformers` does.
    """
    groups: list[list[tuple[str, str, Shape]]] = [[]]
    held = 0
    for one in arrays:
        nbytes = math.prod(one[2]) * item_bytes(one[1])
        if held and held + nbytes > most_bytes and not file:
            groups.append([])
            held = 0
        groups[-1].append(one)
        held += nbytes
    count = len(groups)
    names = [file or TENSORS_FILE]
    if count > 1:
        names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    return [_shard(name, group) for name, group in zip(names, groups, strict=True)]


def _shard(file: str, arrays: Iterable[tuple[str, str, Shape]]) -> Shard:
    header: dict[str, object] = {METADATA: {"format": "pt"}}
    places: list[tuple[str, str, Shape, int]] = []
    at = 0
    # as the format's own writer: large elements first, so that each array is aligned
    for name, dtype, shape in sorted(arrays, key=lambda one: (-item_bytes(one[1]), one[0])):
        stop = at + math.prod(shape) * item_bytes(dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, stop]}
        places.append((name, dtype, shape, at))
        at = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    whole = len(text).to_bytes(8, "little") + text
    return Shard(
        file,
        whole,
        {
            name: Tensor(dtype, shape, file, len(whole) + start)
            for name, dtype, shape, start in places
        },
    )


def index_text(shards: Sequence[Shard]) -> bytes:
    """The index of several shards, as `transformers` writes it."""
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors.values())
    weight_map = {name: shard.file for shard in shards for name in shard.tensors}
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(document, indent=2) + "\n").encode()


def begin(folder: Path, shard: Shard) -> None:
    """Makes the file: its header, and room for its arrays; what they hold already, they keep.

    Raises:
      OSError: there is no room.
    """
    path = folder / shard.file
    with placed(path), path.open("r+b" if path.exists() else "xb") as stream:
        stream.write(shard.header)
        stream.truncate(shard.nbytes)
