"""Bytes that move without being decoded: whole files, references, single chunks. `planned` says
which, `carrying` does it; `checks` is what must hold before anything is written.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
