"""What moves, how, and what it costs: integers only. A plan is made, priced and refused before any
array is read: `blocks` chooses the regions that are read at once and the chunks of what is written,
`undecoded` says which chunks only change their keys.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
