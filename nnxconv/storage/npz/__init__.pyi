from .members import SUFFIX as SUFFIX
from .members import key_of as key_of
from .members import read_members as read_members
