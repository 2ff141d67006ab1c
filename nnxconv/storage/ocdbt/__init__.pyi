from .contents import NO_CONTENTS as NO_CONTENTS
from .contents import Contents as Contents
from .contents import read_contents as read_contents
from .values import Columns as Columns
from .values import Values as Values
from .writing import new_database as new_database
