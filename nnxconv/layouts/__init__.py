"""What names mean: one file for each layout, which recognises a tree, decodes it to the canonical
state, and encodes that again; no I/O. `understanding` finds the layout of a tree, `conversion`
leads from one layout to another; other packages may have more layouts (`plugins`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
