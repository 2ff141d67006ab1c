from .coordinator import part as part
from .coordinator import why_aborted as why_aborted
from .joining import joined as joined
from .team import SINGLE_PROCESS as SINGLE_PROCESS
from .team import Team as Team
from .team import total as total
