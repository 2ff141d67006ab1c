"""Families of layers in blocks, as `--family` and `family=` name them."""

from nnxconv.state import Family, asked_family


def described(family: str | Family | None) -> Family | None:
    """The known family of this name, or the one that a file describes, here or on gs://.

    Raises:
      BadInput: there is none, or the file describes more than one.
    """
    from nnxconv.storage.files import read_text

    return asked_family(family, read_text)
