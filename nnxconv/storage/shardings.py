"""The shardings that Orbax saves beside `jax.Array` leaves."""

import base64
import binascii
from typing import Any

from etils import epath

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.documents import parse_json


def read_shardings(item: epath.Path) -> dict[str, dict[str, Any]]:
    """For each array name: `axis_names`, mesh `shape`, `partition_spec`; empty where not saved.

    Raises:
      DamagedCheckpoint: `_sharding` is not what Orbax writes.
    """
    file = item / "_sharding"
    if not file.exists():
        return {}
    try:
        stored = parse_json(file.read_bytes())
        return {base64.b64decode(name).decode(): parse_json(text) for name, text in stored.items()}
    except (ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise DamagedCheckpoint(f"`{file}` is not what Orbax writes: {error}") from error


def writing_processes(item: epath.Path) -> list[str]:
    """Names of the databases that each writing process left in an OCDBT item."""
    return sorted(child.name for child in item.iterdir() if child.name.startswith("ocdbt.process_"))
