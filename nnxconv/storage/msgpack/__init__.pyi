from .decoding import Array as Array
from .decoding import read_tree as read_tree
from .files import OLD_TREE as OLD_TREE
from .files import is_msgpack as is_msgpack
from .files import newest_file as newest_file
