from .contents import Contents as Contents
from .contents import read_contents as read_contents
