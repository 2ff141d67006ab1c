"""What stands beside the weights in a folder of Hugging Face: configuration, tokenizer, texts."""

from etils import epath

from nnxconv.storage.files import Folder
from nnxconv.storage.safetensors.header import SUFFIX

CONFIG = "config.json"
_WEIGHTS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth"),
    *(".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".pkl", ".pickle"),
)
MAX_BYTES = 100 * 2**20
"""Larger files are weights of some kind."""


def home_of(path: epath.Path) -> epath.Path:
    """The folder of a checkpoint that is a folder, or a file in one."""
    return path.parent if path.suffix == SUFFIX else path


def small_files(folder: Folder) -> dict[str, epath.Path]:
    """The small files of a folder that are no weights, by name."""
    found = {}
    for name in sorted(folder.files):
        file = folder.path / name
        if not name.endswith(_WEIGHTS) and file.stat().length <= MAX_BYTES:
            found[name] = file
    return found
