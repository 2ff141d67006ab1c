"""`checksum`: write the digests of a checkpoint's values, and hold a checkpoint against them."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnxconv.commands.boundary import plainly
from nnxconv.commands.families import described
from nnxconv.commands.opening import open_checkpoint
from nnxconv.commands.options import documented
from nnxconv.comparing import Check, Manifest, check
from nnxconv.errors import BadInput
from nnxconv.layouts import Options
from nnxconv.running import Watcher, ignore, share_one_heap
from nnxconv.state import Family
from nnxconv.tree import parse_bytes

if TYPE_CHECKING:
    from nnxconv.storage.orbax import Location


@dataclass(frozen=True)
class WrittenManifest:
    """Where a manifest was written, how many leaves and files it covers, and of which step."""

    path: str
    leaves: int
    files: int
    choice: str = ""


@plainly
@documented
def write_checksums(
    path: str,
    *,
    manifest: str | None = None,
    step: str | float | None = None,
    at: str | None = None,
    family: str | Family | None = None,
    max_memory: int | str = "2GiB",
    overwrite: bool = False,
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
) -> WrittenManifest:
    """Writes the digests of a checkpoint's values to a manifest beside it.

    The manifest of a root says which step it is of.

    Raises:
      BadInput: the manifest is there already, and may not be replaced.
      DamagedCheckpoint: an array cannot be read.
    """
    from nnxconv.storage.files import refuse_file, write_text

    file = manifest or _manifest_path(path)
    refuse_file(file, overwrite)
    found, choice = _manifest(path, step, _how(at, family), max_memory, allow_uncommitted, watch)
    write_text(file, json.dumps(found.to_json(), indent=1) + "\n")
    return WrittenManifest(file, len(found.leaves), len(found.files), choice)


@plainly
@documented
def check_checksums(
    path: str,
    *,
    manifest: str | None = None,
    step: str | float | None = None,
    at: str | None = None,
    family: str | Family | None = None,
    max_memory: int | str = "2GiB",
    allow_uncommitted: bool = False,
    watch: Watcher = ignore,
) -> Check:
    """Holds a checkpoint against a manifest, which may be that of its other layout.

    Of a root it takes the step that the manifest is of, if it says so, unless another is asked for.

    Raises:
      BadInput: the manifest is not there, or is none.
      DamagedCheckpoint: an array cannot be read.
    """
    from nnxconv.storage.files import read_text
    from nnxconv.storage.orbax import locate

    file = manifest or _manifest_path(path)
    try:
        text = read_text(file)
        if text is None:
            raise BadInput(f"`{file}` is not there", hint=f"`nnxconv checksum {path}` writes it")
        recorded = Manifest.from_json(json.loads(text), file)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"`{file}` is not a checksum manifest") from error
    if step is None and recorded.step and locate(path).given_as == "root":
        step = recorded.step
    found, _ = _manifest(path, step, _how(at, family), max_memory, allow_uncommitted, watch)
    return check(recorded, found)


def _manifest_path(path: str) -> str:
    return path.rstrip("/") + ".checksums.json"


def _how(at: str | None, family: str | Family | None) -> Options:
    return Options(at=at, family=described(family))


def _manifest(
    path: str,
    step: str | float | None,
    how: Options,
    max_memory: int | str,
    allow_uncommitted: bool,
    watch: Watcher,
) -> tuple[Manifest, str]:
    """The digests, and which of several steps they are of."""
    from nnxconv.comparing import digest_leaves
    from nnxconv.storage.files import digest_files
    from nnxconv.storage.orbax import refuse_changed

    share_one_heap()
    opened = open_checkpoint(path, step, how, allow_uncommitted=allow_uncommitted, is_read=True)
    item = opened.item
    leaves = digest_leaves(opened.survey, item, parse_bytes(max_memory), watch)
    files = digest_files(item.path)
    refuse_changed(item.stores.values())
    location = opened.location
    of_step = location.step_name if location.given_as == "root" else ""
    return Manifest(leaves, files, of_step), _step_chosen(location)


def _step_chosen(location: "Location") -> str:
    """The step that was taken where a root has several: `step 2, the newest of 3 steps`."""
    if location.step_name and location.choice:
        return f"step {location.step_name}, {location.choice}"
    return location.choice
