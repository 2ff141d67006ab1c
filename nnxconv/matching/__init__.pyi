from .families import Family as Family
from .proposal import Proposal as Proposal
from .proposal import propose as propose
from .proposal import shapes_of as shapes_of
