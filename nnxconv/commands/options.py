"""What each option means, said once, for the library's docstrings and the command's help.

An option of the command has the name of the argument. Texts begin small and have no final period,
as in docstrings; the help writes them as sentences.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Paths": {
        "source_path": "an item directory, a step, or a root of steps; it is only read",
        "target_path": "is written in the same structure, and committed when it is complete",
        "path": "an item directory, a step, or a root of steps; it is only read",
        "ckpt_path_1": "side a: an item directory, a step, or a root, whose newest step is taken",
        "ckpt_path_2": "side b",
        "base_path": "the weights: an item directory, a step, or a root of steps",
        "adapter_path": "the adapters; the same path where one tree holds both",
        "source_paths": "the checkpoints, each an item directory, a step, or a root of steps",
        "template": "another checkpoint; or `module:function`, a function without arguments; or"
        " what it returns: an `nnx.Module`, an `nnx.State`, Linen variables or a `TrainState`, for"
        " example from `nnx.eval_shape` or `jax.eval_shape`",
        "model": "its variables are updated",
    },
    "What": {
        "direction": "`auto` recognises the source and goes to the other family (a run of MaxText"
        " that is only rearranged, by `--scan_layers` for example, stays one); `linen_to_nnx` and"
        " `nnx_to_linen` state it",
        "to": "the target's layout",
        "from_": "the source's layout, where it cannot be recognised",
        "like": "follow the conventions of this checkpoint, which the target program wrote",
        "rename": "rename modules by the rules of this TOML file, or of this set that comes with"
        " nnxconv",
        "rename_back": "the same, from right to left",
        "config": "for `--to hf` and adapters of PEFT: the folder of the model on Hugging Face, or"
        " its `config.json`, which says what names, types and files are written",
        "fused_qkv": "one array for query, key and value, or three",
        "optimizer": "MaxText's `adam_pax` takes the moments as they are; for optax's `adamw` their"
        " correction of bias is undone",
        "b1": "decay of the first moment",
        "b2": "decay of the second moment",
        "vocab_size": "where the metadata do not give it: cut padding off, or pad with zeros",
        "max_logits": "the largest attention logits that the run recorded: an .npz, a .json or an"
        " Orbax item",
        "threshold": "logits above it are clipped to it",
        "qk_nope_head_dim": "how much of each query and key has no rotary position",
        "missing": "`error`, or `keep`: leave layers without recorded logits as they are",
        "weights": "one number for each checkpoint, in their order; they add up to 1",
        "last": "average the last steps of one root, so many; the newest comes first",
        "ema": "the decay of an exponential moving average over the checkpoints, newest first",
        "alpha": "what the product is scaled by, over its rank; by default `lora_alpha` in"
        " `adapter_config.json` or in the metadata",
        "rslora": "scale by alpha over the square root of the rank instead",
        "unmerge": "subtract what was added",
        "output": "write the rules to this TOML file; what is not certain is in its comments",
        "cast": "read floats in the float types of `like`, and integers in its integer types;"
        " otherwise another type is a mismatch",
        "check": "verify the manifest; write nothing",
        "manifest": "the manifest; the path with `.checksums.json` added by default",
    },
    "Layers": {
        "scan_layers": "stack the layers, or unstack them; by default they are stacked towards NNX,"
        " unstacked towards Linen, and left as they are where `--to` or `--like` names the target",
        "layer_axis": "where stacked arrays have their layers: 1, unless they are stacked already",
        "layer_group": "a further name of layers, besides `layers`, `dense_layers` and"
        " `moe_layers`",
        "family": "the family of models whose blocks of layers these are, by name, or a TOML file"
        " that describes it; by default stacks tell it by their names, layers apart by their marks",
    },
    "Selection": {
        "step": "which step of a root of steps, by number or name",
        "at": "the subtree at this key is the checkpoint; keys are those of `inspect --tree`",
        "at_b": "the same for side b, where it is another key than `--at`; '' is the whole tree",
        "adapter_at": "the same for the adapter, where that is a subtree of its checkpoint",
        "at_template": "the same for the template, where it is a checkpoint",
        "by_values": "pair leaves by what they hold: the template is a checkpoint of the same"
        " weights",
        "drop": "leave out leaves that this glob fits, or whose subtree it fits",
        "params_from": "put the second copy of the parameters at this key, such as an average, in"
        " their place",
        "replica": "take one of every array along the leading axis of replicas, from 0",
        "params_only": "write what serving loads: no optimizer state, step or RNG state",
        "without": "leave out `aux`, `aux.rngs`, `opt_state` or `step`",
        "strict": "leaving out RNG state is an error",
        "compare_only": "`params`, or `all`: optimizer, step and other variables as well",
        "filter": "compare only keys that one of these globs fits, such as `*.mlp.*`",
        "exclude": "leave aside keys that one of these globs fits",
        "ignore_rngs": "leave RNG state aside, which Linen checkpoints do not keep",
    },
    "How": {
        "dtype": "cast the floating-point parameters; moments, quantised weights and their scales"
        " stay as they are",
        "dequantize": "multiply quantised weights with the scales beside them; the products have"
        " the scales' type, or that of `--dtype`",
        "precision": "the type in which sums and products are computed, `float32` or `float64`; the"
        " result is cast once",
        "compression": "of chunks that are encoded anew: `zstd:LEVEL`, 1 (quick) to 22 (small), or"
        " `none`; chunks that are taken over as they are keep theirs, and by default new ones are"
        " like the source's",
        "max_memory": "what blocks in flight may take, besides about 300 MiB for the program:"
        " bytes, or a text such as `2GiB`",
        "transfer": "how encoded chunks that stay as they are get to the target: `copy`, or `link`"
        " for hard links to the source's data files",
        "shard_size": "about how large the files of safetensors become, such as `5GB`",
        "compare_values": "read the arrays, not only their metadata",
        "atol": "absolute tolerance; `|a - b| <= atol + rtol * |b|`, for floats only",
        "rtol": "relative tolerance",
        "equal_nan": "NaN equals NaN",
        "ignore_dtype": "compare values of different types, in the wider one",
        "watch": "is called with an `Event` after each block of work",
        "note": "is called with a line for all that is kept from `like` or left out; by default it"
        " is logged as a warning of the logger `nnxconv`",
    },
    "Safety": {
        "dry_run": "show the plan; write nothing",
        "verify": "before committing, read the target back and compare it with the source",
        "overwrite": "replace what is there, once the new one is complete",
        "resume": "keep what is finished when the run is interrupted or fails, and go on with what"
        " such a run has kept before; not for several processes",
        "allow_uncommitted": "read a checkpoint in a bucket that has no `commit_success.txt`",
    },
    "Many machines": {
        "distributed": "share the work with other processes, which are started alike",
        "coordinator_address": "`host:port` of process 0, unless the cluster or"
        " JAX_COORDINATOR_ADDRESS tells",
        "num_processes": "how many processes, unless the cluster or JAX_NUM_PROCESSES tells",
        "process_id": "which one this is, from 0, unless the cluster or JAX_PROCESS_ID tells",
    },
}
"""The texts by argument, in the groups that `--help` shows."""

_LOADING: Mapping[str, str] = {
    "like": "an `nnx.State`, `nnx.Module`, `nnx.Optimizer`, flax `TrainState`, optax state or"
    " mapping of variables, whose leaves are arrays, numbers or `jax.ShapeDtypeStruct`s, with or"
    " without shardings",
    "rename": "rules in a TOML file, or the name of a set that comes with nnxconv: what modules are"
    " called, and how their arrays are cut, in what is loaded into; without it, a set of nnxconv is"
    " used where it alone leads to the names there, and `note` is told",
    "without": "parts that are not loaded, so that what is loaded into keeps its own: `aux`,"
    " `aux.rngs`, `opt_state`, `step`",
    "layer_axis": "where stacks have their layers whose shapes do not tell",
    "max_memory": "bytes, or a text such as `2GiB`, that blocks in flight may take, besides the"
    " arrays that are loaded",
    "missing": "globs of module paths, such as `encoder.lora.*`, or of keys that may be missing in"
    " the checkpoint: what is loaded into keeps its own",
    "unexpected": "the same for what only the checkpoint has: it is not loaded",
    "mismatched": "the same for arrays of another shape or type: what is loaded into keeps its own",
}

_PRODUCTS = (
    "multiply quantised weights with the scales beside them; the products have the scales' type"
)

OTHERWISE: Mapping[str, Mapping[str, str]] = {
    "compare": {
        "dequantize": _PRODUCTS,
        "rename": "rules in a TOML file, or the name of a set that comes with nnxconv: what the"
        " modules of side a are called, and how their arrays are cut, on side b",
    },
    "gpt3_from_paxml": {
        "target_path": "a root, as `CheckpointManager` has it; `<step>/items` is written in it",
        "scan_layers": "stack the layers, or write them apart",
        "layer_axis": "where stacked arrays have their layers",
        "step": "which step of a root of steps, by number",
        "params_only": "write the parameters alone; the source needs no more either",
        "model": "check that the sizes are those of this model: `gpt3-175b` or `gpt3-52k`",
    },
    "merge_lora": {"dequantize": _PRODUCTS},
    "load": _LOADING,
    "load_into": {**_LOADING, "optimizer": "is updated too, its step included"},
    "open": {"layer_axis": _LOADING["layer_axis"]},
}
"""What an argument means in one function alone."""


_ELSEWHERE = {"model": "What", "paxml_ckpt_path": "Paths", "output_path": "Paths"}
"""Groups of options that stand for another argument than the one of that name in Python."""


def text_of(function: str, argument: str) -> str:
    """What an argument of a function means.

    Raises:
      KeyError: nothing is said of it.
    """
    known = {name: text for group in GROUPS.values() for name, text in group.items()}
    return {**known, **OTHERWISE.get(function, {})}[argument]


def group_of(argument: str) -> str:
    """The group under which help shows an argument; "Output" for what only the command has."""
    own = next((group for group, texts in GROUPS.items() if argument in texts), "Output")
    return _ELSEWHERE.get(argument, own)


def documented(function: Function) -> Function:
    """The function, its docstring with a section about its arguments."""
    lines = [
        f"  {name}: {text_of(function.__name__, name)}."
        for name in inspect.signature(function).parameters
    ]
    told = inspect.cleandoc(function.__doc__ or "")
    before, mark, after = told.partition("\n\nReturns:")
    if not mark:
        before, mark, after = told.partition("\n\nRaises:")
    function.__doc__ = "\n".join([before, "", "Args:", *lines]) + mark + after
    return function
