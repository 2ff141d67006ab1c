"""What unstacking costs at least: each stored chunk decoded, its layers gathered and encoded.

    python -m tests.benchmarks.floor CHECKPOINT

On one thread, from memory to memory; prints the seconds of the processor as JSON.
"""

import json
import sys
import time

import numpy as np
import tensorstore as ts
import zstandard

LAYER_AXIS = 1


def main() -> None:
    """Measures the codecs on all stacked arrays of float32."""
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{sys.argv[1]}/"}}
    store = ts.KvStore.open(spec).result()
    decode, encode = zstandard.ZstdDecompressor(), zstandard.ZstdCompressor(level=1)
    seconds = 0.0
    for key in store.list().result():
        if b"layers" not in key or not key.endswith(b"/.zarray"):
            continue
        shape = json.loads(store.read(key).result().value)["chunks"]
        folder = key.removesuffix(b".zarray")
        chunks = store.list(ts.KvStore.KeyRange(folder, folder + b"~")).result()
        for chunk in (one for one in chunks if one != key):
            encoded = store.read(chunk).result().value
            started = time.process_time()
            values = np.frombuffer(decode.decompress(encoded), np.float32).reshape(shape)
            for layer in range(shape[LAYER_AXIS]):
                encode.compress(values.take(layer, LAYER_AXIS).data)
            seconds += time.process_time() - started
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
