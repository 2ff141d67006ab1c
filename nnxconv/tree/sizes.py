"""Numbers of bytes, as people write and read them."""

import re

from nnxconv.errors import BadInput

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: int | str) -> int:
    """The number of bytes in `2GiB`, `512 MiB`, `1.5GB` (decimal) or `1000000`.

    >>> parse_bytes("2GiB"), parse_bytes("1.5GB"), parse_bytes(7)
    (2147483648, 1500000000, 7)

    Raises:
      BadInput: it is not a positive size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?B?)\s*", str(text), re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < 2**63:
        raise BadInput(f"`{text}` is not a size", hint="for example `2GiB` or `512MiB`")
    unit = match[2].upper()
    is_decimal = match[3].lower() == "b" and unit != ""
    factor = 1000 ** " KMGT".index(unit or " ") if is_decimal else _UNITS[unit]
    return int(float(match[1]) * factor)


def format_bytes(count: int) -> str:
    """A number of bytes for people.

    >>> format_bytes(3435973837), format_bytes(12), format_bytes(2097371971592)
    ('3.2 GiB', '12 bytes', '1.9075 TiB')
    """
    if count < 1024:
        return f"{count:,} bytes"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:,.{4 if unit == 'TiB' else 1}f} {unit}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "array"), counted(1520, "array"), counted(2, "leaf", "leaves")
    ('1 array', '1,520 arrays', '2 leaves')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
