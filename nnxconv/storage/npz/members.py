"""The arrays of an npz file, and where their bytes are."""

import math
import os
import struct
import zipfile
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from etils import epath
from numpy.lib import format as npy

from nnxconv.errors import BadInput, DamagedCheckpoint
from nnxconv.tree import Key, Shape

SUFFIX = ".npz"
_ENDING = ".npy"
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


_NO_NPZ = (
    *(ValueError, OSError, EOFError, struct.error, zipfile.BadZipFile, SyntaxError),
    *(NotImplementedError, RuntimeError, MemoryError, RecursionError),
)
"""What zipfile and numpy raise for headers that nobody writes."""


@dataclass(frozen=True)
class Member:
    """An array of the file: its type and shape, and the offset of its first byte.

    With `is_turned` the bytes are those of the transposed array, of this shape (Fortran's order).
    """

    dtype: str
    shape: Shape
    start: int
    is_turned: bool = False


def read_members(file: epath.Path) -> dict[str, Member]:
    """The arrays of a file, by name.

    Raises:
      BadInput: some are compressed, of another byte order, or no numbers.
      DamagedCheckpoint: it is no npz file, or has a name twice.
    """
    problems: list[str] = []
    found: dict[str, Member] = {}
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            end = stream.seek(0, os.SEEK_END)
            for entry in archive.infolist():
                name = entry.filename.removesuffix(_ENDING)
                if name in found:
                    raise ValueError(f"`{name}` stands there twice")
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    problems.append(f"{name}: is compressed")
                    continue
                stream.seek(entry.header_offset)
                header = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
                begin = entry.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
                stream.seek(begin)
                version = npy.read_magic(stream)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, is_fortran, dtype = read(stream)
                dtype = np.dtype("bfloat16") if dtype.str == "|V2" else dtype
                if dtype.kind in "OSUmM" or (dtype.kind == "V" and dtype.name != "bfloat16"):
                    problems.append(f"{name}: {dtype} is no type of numbers")
                elif not dtype.isnative:
                    problems.append(f"{name}: its bytes are in another order")
                elif not all(type(size) is int and size >= 0 for size in shape):
                    raise ValueError(f"`{name}` has a shape of no sizes")
                elif (
                    stream.tell() - begin + math.prod(shape) * dtype.itemsize != entry.file_size
                    or begin + entry.file_size > end
                ):
                    raise ValueError(f"`{name}` is cut off")
                else:
                    sizes = tuple(reversed(shape)) if is_fortran else tuple(shape)
                    found[name] = Member(dtype.name, sizes, stream.tell(), is_fortran)
    except _NO_NPZ as error:
        raise DamagedCheckpoint(f"`{file}` is not an npz file of numpy: {error}") from error
    if problems:
        raise BadInput(
            f"{len(problems):,} arrays of `{file}` do not lie in it as they are",
            details=problems,
            hint="`np.savez(NEW, **np.load(FILE))` writes them so",
        )
    return found


def key_of(name: str, names_have_slashes: bool) -> Key:
    """A name as a key: taken apart at slashes where names have such, else at dots.

    >>> key_of("params/Dense_0/kernel", True), key_of("a.b", False)
    (('params', 'Dense_0', 'kernel'), ('a', 'b'))
    """
    return tuple(name.split("/" if names_have_slashes else "."))
