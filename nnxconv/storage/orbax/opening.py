"""The item that was located, opened in whichever container it is."""

from nnxconv.storage import TREE_METADATA
from nnxconv.storage.files import Folder, SmallFiles
from nnxconv.storage.msgpack import OLD_TREE
from nnxconv.storage.orbax.item import Item, joined_items, orbax_item
from nnxconv.storage.orbax.location import Location
from nnxconv.storage.orbax.raw_items import open_msgpack, open_npz, open_tensors


def open_item(location: Location, *, is_read: bool = False) -> Item:
    """Opens the item that was located, or the items that are one tree.

    Where values `is_read` besides metadata, its files are looked at before, so that it can be told
    whether they have changed since.

    Raises:
      NotACheckpoint: `_METADATA` is not what Orbax writes.
      DamagedCheckpoint: an array that the tree names is not there.
    """
    match location.container:
        case "safetensors":
            return open_tensors(location.folder, is_read)
        case "npz":
            return open_npz(location.item, is_read)
        case "msgpack":
            return open_msgpack(location.item, None, is_read)
    if not location.joined:
        return _in_folder(location.folder, is_read, location.small)
    small = location.small
    parts = {folder.path.name: _in_folder(folder, is_read, small) for folder in location.joined}
    return joined_items(location.item.parent, parts)


def _in_folder(folder: Folder, is_read: bool, small: SmallFiles) -> Item:
    if TREE_METADATA in folder.files:
        return orbax_item(folder, is_read, small)
    return open_msgpack(folder.path / OLD_TREE, folder, is_read)
