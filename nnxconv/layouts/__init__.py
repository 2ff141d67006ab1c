"""What names mean: one file for each layout, which recognises a tree, decodes it to the canonical
state, and encodes that again; no I/O. Other packages may have more layouts (`plugins`).

```
surveying      a whole tree: its states, their copies, the role of every leaf (`located`);
               recorded_states where nnxconv wrote it, else found_states
finding        where states stand, by structure: outline, optimizers, vocabulary, gathering
recognition    which layout one state is in; understanding: its meaning and its layers
conversion     from one layout to another; conforming: as `--like` has it
joining        the pieces of a target put together; placement: where each key goes
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
