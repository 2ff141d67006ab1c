"""What a path that is no Orbax checkpoint seems to be, by its names, and how it gets to Orbax.

No file is opened for it: a pickle runs code when it is.
"""

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nnxconv.storage import MANIFEST, UNFINISHED
from nnxconv.storage.files import Folder

SAVE = "`ocp.StandardCheckpointer().save(NEW, tree)`"


@dataclass(frozen=True)
class Format:
    """A format that is not Orbax's.

    Attributes:
      name: what it is called, with an article.
      load: how a program reads it as a tree of arrays.
      files: globs of which a file's name fits one.
      together: for a folder: globs of all of which it has files or folders.
    """

    name: str
    load: str
    files: tuple[str, ...] = ()
    together: tuple[str, ...] = ()

    @property
    def hint(self) -> str:
        """What it looks like, and what to do."""
        then = "" if "nnxconv reads" in self.load else f", then {SAVE}"
        return f"it looks like {self.name}: {self.load}{then}"


FORMATS = (
    Format(
        "a T5X checkpoint",
        "read it with `t5x.checkpoints.load_t5x_checkpoint(PATH)`",
        together=("checkpoint", "target.*"),
    ),
    Format(
        "a checkpoint of Levanter",
        "read it with `levanter.checkpoint.load_checkpoint(tree, PATH)`",
        together=("metadata.json", MANIFEST),
    ),
    Format(
        "a TensorFlow SavedModel",
        "read its variables with `tf.saved_model.load(PATH)`",
        together=("saved_model.pb",),
    ),
    Format(
        "a TensorFlow checkpoint",
        "read its variables with `tf.train.load_checkpoint(PATH)`",
        files=("*.ckpt.index", "*.data-?????-of-?????"),
        together=("*.index", "*.data-?????-of-?????"),
    ),
    Format(
        "parameters streamed by EasyLM",
        "read them with `StreamingCheckpointer.load_checkpoint(FILE)` of EasyLM",
        files=("streaming_params*", "streaming_train_state*"),
    ),
    Format(
        "one array of numpy",
        "read it with `np.load(FILE)`",
        files=("*.npy",),
    ),
    Format(
        "a PyTorch checkpoint",
        "make safetensors of it, which nnxconv reads:"
        ' `safetensors.torch.save_file(torch.load(FILE, weights_only=True), "model.safetensors")`',
        files=("*.bin", "*.pt", "*.pth", "*.ckpt"),
    ),
    Format(
        "a pickle, which runs code when it is opened, so that nnxconv does not",
        "if you trust it, read it with `pickle.load`",
        files=("*.pkl", "*.pickle", "*.joblib"),
    ),
    Format(
        "a Keras model",
        "read its weights with `keras.saving.load_model(FILE)`",
        files=("*.keras", "*.h5", "*.hdf5"),
    ),
    Format(
        "a module of Equinox",
        "read it with `eqx.tree_deserialise_leaves(FILE, module)`",
        files=("*.eqx",),
    ),
    Format(
        "a GGUF file",
        "take the checkpoint that it was made from, or read it with the package `gguf`",
        files=("*.gguf", "*.ggml"),
    ),
    Format(
        "an archive",
        "unpack it; what is in it may be an Orbax checkpoint, else read it as what it is",
        files=("*.tar", "*.tar.gz", "*.tgz", "*.zip", "*.tar.zst"),
    ),
    Format(
        "arrays of TensorStore or Zarr without Orbax's `_METADATA`",
        "read each with `ts.open`",
        files=(".zarray", "zarr.json"),
        together=(MANIFEST,),
    ),
)
"""The more particular ones first."""


def seems_to_be(name: str, inside: Collection[str] = ()) -> Format | None:
    """The format of a file of this name, or of a folder with these names in it.

    >>> seems_to_be("params.pkl").name
    'a pickle, which runs code when it is opened, so that nnxconv does not'
    >>> seems_to_be("run", ["checkpoint", "target.encoder.kernel"]).name
    'a T5X checkpoint'
    """
    if not inside:
        return next((f for f in FORMATS if _fits(name, f.files)), None)
    for one in FORMATS:
        has_all = one.together and all(_has(inside, glob) for glob in one.together)
        if has_all or any(_fits(file, one.files) for file in inside):
            return one
    return None


def _fits(name: str, globs: Collection[str]) -> bool:
    return any(fnmatchcase(name.lower(), glob) for glob in globs)


def _has(names: Collection[str], glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in names)


def looks_like(folder: Folder) -> str:
    """What a directory that is no checkpoint seems to be, and what to try."""
    names = folder.names
    if any(UNFINISHED in name for name in names):
        return "it holds only unfinished saves, which were interrupted before they were committed"
    if "metadata" in names and "state" in names:
        return "it looks like a Pax checkpoint: `nnxconv gpt3-from-paxml` imports those of GPT-3"
    if not names:
        return "it is empty"
    known = seems_to_be(folder.path.name, names)
    if known is not None:
        return known.hint
    return "expected `_METADATA`, an item that has it, or numbered steps"
