"""What stands beside the weights in a new folder of safetensors: the index, and small files."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from nnxconv.storage import TENSORS, TENSORS_INDEX
from nnxconv.storage.files import copy_files, files_below, write_files
from nnxconv.storage.gcs import is_remote
from nnxconv.storage.orbax.saving import Target
from nnxconv.storage.safetensors import INDEX, Shard, index_text

_WEIGHTS = (TENSORS, TENSORS_INDEX)


def write_beside(target: Target, shards: Sequence[Shard], directory: epath.Path) -> None:
    """Everything but the weights; in a bucket the index comes last."""
    write_files({directory / name: file.read_bytes() for name, file in target.files.items()})
    if len(shards) > 1 and not is_remote(directory):
        write_files({directory / INDEX: index_text(shards)})
    if target.tensors_file or not target.may_replace:
        return
    if is_remote(directory):
        _keep_other_objects(target.path, directory)
    else:
        _keep_others(Path(os.fspath(target.path)), Path(os.fspath(directory)))


def _keep_other_objects(old: epath.Path, new: epath.Path) -> None:
    """Keeps what stands in a bucket beside the safetensors that are replaced."""
    if old != new:
        names = {n for n in files_below(old) if "/" not in n and not n.endswith(_WEIGHTS)}
        copy_files((old / name, new / name) for name in names - files_below(new).keys())


def _keep_others(old: Path, new: Path) -> None:
    """Keeps what stands beside the safetensors that are replaced, such as a README.

    A file is not copied but has both names until the old folder goes, where the disk can do that.
    """
    for file in old.iterdir() if old.is_dir() else ():
        if file.name.endswith(_WEIGHTS) or file.is_dir() or (new / file.name).exists():
            continue
        try:
            (new / file.name).hardlink_to(file)
        except OSError:
            shutil.copy2(file, new / file.name, follow_symlinks=False)
