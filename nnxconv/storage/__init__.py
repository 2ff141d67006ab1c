"""How named arrays are found and written: only here are Orbax, TensorStore, etils and gcsfs known.

`gcs`, `files`, `zarr`, `ocdbt`, `safetensors`, `msgpack`, `npz`, `resume`, `orbax` and `transfer`
are rooms of their own, each of which knows those before it; `pax` opens what Pax saved, `tasks`
runs work at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
