"""Digests of a checkpoint's values, which survive conversion, re-chunking and recompression.

A digest is the XXH3-128 of an array's elements in logical (C) order, little-endian, layer by
layer, under the canonical key. A manifest that was made from a Linen checkpoint therefore checks
its NNX conversion. Integer scalars (steps, counts) are digested as int64, whichever type holds
them. The digests of the files themselves find damage that no value shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnxconv.errors import BadInput
from nnxconv.tree import Shape

ALGORITHM = "xxh3_128"
VERSION = 1


@dataclass(frozen=True)
class LeafDigest:
    """Element type, shape and digest of one leaf."""

    dtype: str
    shape: Shape
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The digests of a checkpoint.

    Attributes:
      leaves: by canonical key.
      files: of their bytes, by relative path.
      step: which step of a root they are of; empty for what is no root.
    """

    leaves: Mapping[str, LeafDigest]
    files: Mapping[str, str] = field(default_factory=dict)
    step: str = ""

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {
            "nnxconv_checksums": VERSION,
            "algorithm": ALGORITHM,
            **({"step": self.step} if self.step else {}),
            "leaves": {
                name: {"dtype": leaf.dtype, "shape": list(leaf.shape), "digest": leaf.digest}
                for name, leaf in self.leaves.items()
            },
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, record: Any, where: str) -> "Manifest":
        """The inverse of `to_json`.

        Raises:
          BadInput: it is no manifest, or one of another version.
        """
        try:
            if record["nnxconv_checksums"] != VERSION or record["algorithm"] != ALGORITHM:
                raise BadInput(f"`{where}` is a checksum manifest of another version")
            leaves = {
                name: LeafDigest(leaf["dtype"], tuple(leaf["shape"]), leaf["digest"])
                for name, leaf in record["leaves"].items()
            }
            step = record.get("step", "")
            if not isinstance(step, str):
                raise TypeError("a step is text")
            return cls(leaves, dict(record["files"]), step)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"`{where}` is not a checksum manifest") from error


@dataclass(frozen=True)
class Check:
    """A checkpoint held against a manifest; it counts, and owns the exit code.

    Attributes:
      problems: what differs, one line each.
      leaves: how many leaves the manifest has.
      files: how many files were checked; 0 when the checkpoint's files are others.
      step: which step of a root was checked.
    """

    problems: Sequence[str]
    leaves: int
    files: int
    step: str = ""

    @property
    def is_match(self) -> bool:
        """True when every digest is as recorded."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """0 for a match, 1 for a difference."""
        return 0 if self.is_match else 1


def check(recorded: Manifest, found: Manifest) -> Check:
    """Holds what was found against what was recorded."""
    problems: list[str] = []
    for name in sorted(recorded.leaves.keys() | found.leaves.keys()):
        before, now = recorded.leaves.get(name), found.leaves.get(name)
        if before is None:
            problems.append(f"{name}  is not in the manifest")
        elif now is None:
            problems.append(f"{name}  is missing")
        elif (before.dtype, before.shape) != (now.dtype, now.shape):
            problems.append(f"{name}  is {_array(now)}, and was {_array(before)}")
        elif before.digest != now.digest:
            problems.append(f"{name}  has other values")
    is_same = _is_same_container(recorded.files, found.files)
    for name, digest in recorded.files.items() if is_same else ():
        if name not in found.files:
            problems.append(f"file `{name}`  is missing")
        elif found.files[name] != digest:
            problems.append(f"file `{name}`  has other bytes")
    files = len(recorded.files) if is_same else 0
    return Check(problems, len(recorded.leaves), files, found.step)


_PER_SAVE = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that hold the time and place of a save, and no arrays."""


def _is_same_container(recorded: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """True for the very files of the manifest, some of them perhaps damaged.

    False for the same values in other files, and for a second save of them into equal files, whose
    time and place differ.
    """
    equal = {name for name, digest in recorded.items() if found.get(name) == digest}
    stamps = {name for name in recorded if name in _PER_SAVE and name in found}
    is_other_save = bool(stamps) and not stamps & equal
    return 2 * len(equal) >= len(recorded) > 0 and not is_other_save


def _array(leaf: LeafDigest) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
