"""The same tree saved by Orbax and by us, and what of the two may differ."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from nnxconv.running import execute
from nnxconv.storage.orbax import locate, open_item, target_for
from nnxconv.storage.transfer import divide

JSON = re.compile(r"(.*/)?(_METADATA|_CHECKPOINT_METADATA|_strings\.json|_sharding|process_\d+)")

DATA_FILE = re.compile(r"(.*/)?d/[0-9a-f]{32}")
"""Named at random, and there are as many as were written at once."""

OWN_DATABASE = re.compile(r"(.*/)?ocdbt\.process_\d+/.*")
"""Orbax's processes write to databases of their own; ours write to the merged one, to which all
readers go."""


def saved_again(source: Path, target: Path, **custom_metadata: Any) -> None:
    """Saves the tree of a checkpoint by ourselves, arranged as it is."""
    location = locate(str(source))
    item = open_item(location)
    goal = target_for(str(target), location, location.custom_metadata)
    shares = divide(
        item.tree,
        [item],
        goal.item_path,
        is_split=False,
        container=item.container,
        transfer="copy",
        max_memory=2**30,
    )
    execute(shares, item.stores, goal, custom_metadata={**item.custom_metadata, **custom_metadata})


def files(root: Path) -> set[str]:
    """The names of a checkpoint's files, but for those that are named at random."""
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return {name for name in names if not DATA_FILE.fullmatch(name)}


def documents(root: Path) -> dict[str, Any]:
    """What every JSON file of a checkpoint says, without what two saves never share."""
    return {
        name: _timeless(json.loads((root / name).read_text()))
        for name in sorted(files(root))
        if JSON.fullmatch(name)
    }


def _timeless(document: dict[str, Any]) -> dict[str, Any]:
    return {key: told for key, told in document.items() if not key.endswith("_nsecs")}


def without_devices(told: dict[str, Any]) -> dict[str, Any]:
    """The documents of an item as our targets have them, whose arrays belong to no devices.

    A `jax.Array` becomes an `np.ndarray`, which restores on any machine: it has no sharding, and no
    entry in `array_metadatas`. Typed keys stay, each on the first device.
    """
    told = json.loads(json.dumps(told))
    arrays = told.pop("array_metadatas/process_0", {"array_metadatas": []})["array_metadatas"]
    shardings = told.pop("_sharding", {})
    entries = [entry for entry in arrays if entry["array_metadata"]["ext_metadata"]]
    keys = {entry["array_metadata"]["param_name"] for entry in entries}
    for leaf in told["_METADATA"]["tree_metadata"].values():
        value = leaf["value_metadata"]
        name = ".".join(part["key"] for part in leaf["key_metadata"])
        if value["value_type"] == "jax.Array" and name not in keys:
            value["value_type"] = "np.ndarray"
            del value["write_shape"]
    if keys:
        told["array_metadatas/process_0"] = {"array_metadatas": sorted(entries, key=str)}
        named = {base64.b64decode(coded).decode(): coded for coded in shardings}
        told["_sharding"] = {named[name]: ON_DEVICE_0 for name in sorted(keys)}
    return told


ON_DEVICE_0 = (
    '{"sharding_type": "NamedSharding", "shape": [1], "axis_names": ["x"],'
    ' "axis_types": ["AxisType.Auto"], "partition_spec": [], "device_mesh": {"mesh": [{"id": 0}]}}'
)
