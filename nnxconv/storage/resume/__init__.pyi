from .journal import Commit as Commit
from .journal import Journal as Journal
from .journal import Stamp as Stamp
from .runs import begun as begun
from .runs import has_remains as has_remains
from .runs import resumable_work as resumable_work
