"""The shardings that Orbax saves beside `jax.Array` leaves."""

import base64
import binascii
from typing import Any

from nnxconv.errors import DamagedCheckpoint
from nnxconv.storage.files import Folder, parse_json, read_if_there


def read_shardings(item: Folder) -> dict[str, dict[str, Any]]:
    """For each array name: `axis_names`, mesh `shape`, `partition_spec`; empty where not saved.

    Raises:
      DamagedCheckpoint: `_sharding` is not what Orbax writes.
    """
    if "_sharding" not in item.files:
        return {}
    file = item.path / "_sharding"
    try:
        stored = parse_json(read_if_there(file) or "")
        return {
            base64.urlsafe_b64decode(name).decode(): parse_json(text)
            for name, text in stored.items()
        }
    except (ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise DamagedCheckpoint(f"`{file}` is not what Orbax writes: {error}") from error


def writing_processes(item: Folder) -> list[str]:
    """Names of the databases that each writing process left in an OCDBT item."""
    return sorted(name for name in item.names if name.startswith("ocdbt.process_"))
