"""Small random adapters of PEFT for the models of `hugging_face`."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.support.hugging_face import Arrays, Sizes, arrays_of

ROOT = "base_model.model."
PROJECTIONS = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")
RANK = 2
ALPHA = 8


def factors_of(kind: str, sizes: Sizes, only: str | tuple[str, ...] = PROJECTIONS) -> Arrays:
    """Random factors of a model's projections, as PEFT names and shapes them."""
    made = np.random.default_rng(1)
    found: Arrays = {}
    for name, weights in arrays_of(kind, sizes).items():
        if weights.ndim == 2 and name.endswith(only):
            rows, columns = weights.shape
            module = ROOT + name.removesuffix(".weight")
            found[f"{module}.lora_A.weight"] = made.standard_normal((RANK, columns)).astype("f4")
            found[f"{module}.lora_B.weight"] = made.standard_normal((rows, RANK)).astype("f4")
    return found


def save_adapter(path: Path, factors: Arrays) -> Path:
    """A folder as PEFT writes it."""
    path.mkdir()
    save_file(factors, path / "adapter_model.safetensors", {"format": "pt"})
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(told))
    return path
