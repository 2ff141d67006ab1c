"""What stands beside the weights in a folder of Hugging Face: configuration, tokenizer, texts."""

from etils import epath

from nnxconv.storage import TENSORS, TENSORS_INDEX
from nnxconv.storage.files import Folder, refuse_strangers

CONFIG = "config.json"
_WEIGHTS = (
    *(TENSORS, TENSORS_INDEX, ".bin", ".bin.index.json", ".pt", ".pth"),
    *(".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".pkl", ".pickle"),
)
MAX_BYTES = 100 * 2**20
"""Larger files are weights of some kind."""


def home_of(path: epath.Path) -> epath.Path:
    """The folder of a checkpoint that is a folder, or a file in one."""
    return path.parent if path.suffix == TENSORS else path


def root_of(home: epath.Path) -> epath.Path:
    """The folder out of which no link may lead.

    In the cache of Hugging Face's hub, `models--NAME/snapshots/VERSION` links to the files in
    `models--NAME/blobs`.
    """
    cached = home.parent.parent
    is_cached = home.parent.name == "snapshots" and (cached / "blobs").is_dir()
    return cached if is_cached else home


def small_files(folder: Folder) -> dict[str, epath.Path]:
    """The small files of a folder that are no weights, by name.

    Raises:
      DamagedCheckpoint: some are links out of it, or no files.
    """
    refuse_strangers(root_of(folder.path), *(folder.path / name for name in sorted(folder.files)))
    found = {}
    for name in sorted(folder.files):
        file = folder.path / name
        if not name.endswith(_WEIGHTS) and file.stat().length <= MAX_BYTES:
            found[name] = file
    return found
