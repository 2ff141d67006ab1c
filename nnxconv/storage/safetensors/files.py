"""Which safetensors files are one checkpoint: one file, or shards with or without an index."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from nnxconv.errors import BadInput, DamagedCheckpoint
from nnxconv.storage import TENSORS, TENSORS_INDEX
from nnxconv.storage.files import Folder, read_json
from nnxconv.storage.gcs import REQUESTS_AT_ONCE, is_remote
from nnxconv.storage.safetensors.header import Tensor, read_header
from nnxconv.tree import counted

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def has_tensors(folder: Folder) -> bool:
    """True for a folder with safetensors files or an index of some."""
    return any(name.endswith((TENSORS, TENSORS_INDEX)) for name in folder.files)


def find_tensors(folder: Folder, path: epath.Path) -> dict[str, Tensor]:
    """The arrays at a path, by name: those of the folder, or of one file in it.

    Raises:
      BadInput: the folder has several checkpoints.
      DamagedCheckpoint: shards are missing, hold an array twice, or are not what the index says.
    """
    if path != folder.path:
        return _read(folder.path, [path.name], None)
    indices = sorted(name for name in folder.files if name.endswith(TENSORS_INDEX))
    if len(indices) == 1:
        return _indexed(folder, indices[0])
    files = sorted(name for name in folder.files if name.endswith(TENSORS))
    are_one = _are_shards(folder.path, files) or len(files) == 1
    if len(indices) > 1 or not are_one:
        raise BadInput(
            f"`{folder.path}` holds several checkpoints",
            details=indices or files,
            hint=f"name one of the files: `{folder.path / files[0]}`",
        )
    return _read(folder.path, files, None)


def _indexed(folder: Folder, index: str) -> dict[str, Tensor]:
    """What an index names: every array is in the file that it says, and no other is there."""
    told = _weight_map(folder, index)
    named = sorted(set(told.values()))
    _refuse_more_shards(folder, index, named)
    missing = sorted(set(named) - folder.files)
    if missing:
        raise DamagedCheckpoint(
            f"`{folder.path}` lacks {len(missing)} of the files that `{index}` names",
            details=missing,
            hint="download them, or write the checkpoint again",
        )
    _are_shards(folder.path, named)
    return _read(folder.path, named, told)


def _weight_map(folder: Folder, index: str) -> dict[str, str]:
    """The file of each array.

    Raises:
      DamagedCheckpoint: the index does not tell them.
    """
    told = read_json(folder.path / index).get("weight_map")
    if not isinstance(told, dict) or not all(isinstance(file, str) for file in told.values()):
        raise DamagedCheckpoint(f"`{folder.path / index}` has no `weight_map`")
    return told


def _refuse_more_shards(folder: Folder, index: str, named: Iterable[str]) -> None:
    """Refuses shards that are called as those of the index, but are not in it.

    Raises:
      DamagedCheckpoint: there are some.
    """
    matches = [_SHARD.fullmatch(name) for name in named]
    stems = {match["stem"] for match in matches if match is not None}
    others = [(name, _SHARD.fullmatch(name)) for name in sorted(folder.files - set(named))]
    more = [name for name, match in others if match is not None and match["stem"] in stems]
    if more:
        raise DamagedCheckpoint(
            f"`{folder.path}` holds {counted(len(more), 'shard')} that `{index}` does not name",
            details=more,
            hint="remove them, or the index: shards are read without one as well",
        )


def beside_index(folder: Folder) -> tuple[str, ...]:
    """Files of safetensors that the index of their folder does not name, and that are not read."""
    indices = [name for name in folder.files if name.endswith(TENSORS_INDEX)]
    if len(indices) != 1:
        return ()
    named = set(_weight_map(folder, indices[0]).values())
    return tuple(sorted(n for n in folder.files - named if n.endswith(TENSORS)))


def _are_shards(path: epath.Path, files: Iterable[str]) -> bool:
    """True for files that are called as the shards of one checkpoint.

    Raises:
      DamagedCheckpoint: some of the shards are not there.
    """
    found = [_SHARD.fullmatch(name) for name in files]
    named = [match for match in found if match is not None]
    if len(named) < len(found) or len({(m["stem"], m["count"]) for m in named}) > 1:
        return False
    numbers = {int(match["number"]) for match in named}
    missing = sorted(set(range(1, int(named[0]["count"]) + 1)) - numbers)
    if missing:
        told = [f"{named[0]['stem']}-{n:05}-of-{named[0]['count']}{TENSORS}" for n in missing]
        raise DamagedCheckpoint(f"`{path}` lacks {len(missing)} of its shards", details=told)
    return True


def _read(
    path: epath.Path, files: Iterable[str], told: Mapping[str, str] | None
) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for file, found in _headers(path, list(files)):
        doubles = sorted(arrays.keys() & found.keys())
        if doubles:
            raise DamagedCheckpoint(
                f"`{path}` has {len(doubles):,} arrays twice",
                details=[f"{name}: in {arrays[name].file} and {file}" for name in doubles],
            )
        arrays |= found
    if told is not None:
        _refuse_other_places(path, arrays, told)
    return arrays


def _headers(path: epath.Path, files: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The arrays of each file; many files are asked for at once in a bucket."""
    if not is_remote(path):
        yield from ((file, read_header(path / file)[0]) for file in files)
        return
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        headers = pool.map(lambda file: read_header(path / file)[0], files)
        yield from zip(files, headers, strict=True)


def _refuse_other_places(
    path: epath.Path, arrays: Mapping[str, Tensor], told: Mapping[str, str]
) -> None:
    problems = [f"{n}: is not in {file}" for n, file in told.items() if n not in arrays]
    problems += [
        f"{name}: is in {arrays[name].file}, not {file}"
        for name, file in told.items()
        if name in arrays and arrays[name].file != file
    ]
    problems += [
        f"{n}: in {t.file}, but not in the index" for n, t in arrays.items() if n not in told
    ]
    if problems:
        raise DamagedCheckpoint(
            f"the index of `{path}` and its files do not agree", details=problems
        )
