"""The options of all commands, each declared once, and shown in groups."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from nnxconv.commands.options import GROUPS, group_of, text_of
from nnxconv.commands.values import AXES, CHOICES, layout_called, layout_names

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Layout(click.ParamType):
    """The name of a layout; those of other packages are looked up when one is given or listed."""

    name = "layout"

    def __init__(self, function: str, argument: str) -> None:
        self._of = (function, argument)

    @property
    def _names(self) -> tuple[str, ...]:
        return layout_names(*self._of)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The layout, spelled with dashes or underscores."""
        found = layout_called(value, self._names)
        if found is None:
            self.fail(f"{value!r} is not one of {', '.join(self._names)}.", param, ctx)
        return found

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """All names, as click writes a choice."""
        return f"[{'|'.join(self._names)}]"


_FLAG: Mapping[str, Any] = {"is_flag": True}
_SHOWN: Mapping[str, Any] = {"show_default": True}
_GLOBS: Mapping[str, Any] = {"multiple": True, "metavar": "GLOB"}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "direction": {
        "type": click.Choice(CHOICES["direction"]),
        "default": "auto",
        **_SHOWN,
    },
    "to": {},
    "from_": {},
    "like": {"metavar": "PATH"},
    "rename": {"metavar": "RULES"},
    "rename_back": {"metavar": "RULES"},
    "config": {"metavar": "HF_DIR"},
    "alpha": {"type": float},
    "rslora": {"flags": "--rslora/--no-rslora", "default": None},
    "unmerge": _FLAG,
    "fused_qkv": {"flags": "--fused_qkv/--split_qkv", "default": True, **_SHOWN},
    "optimizer": {
        "type": click.Choice(CHOICES["optimizer"]),
        "default": "adam_pax",
        **_SHOWN,
    },
    "b1": {"type": float, "default": 0.9, **_SHOWN},
    "b2": {"type": float, "default": 0.95, **_SHOWN},
    "vocab_size": {"type": int, "metavar": "N"},
    "model": {"type": click.Choice(["gpt3-175b", "gpt3-52k"])},
    "max_logits": {"metavar": "FILE", "required": True},
    "threshold": {"type": float, "required": True},
    "qk_nope_head_dim": {"type": int, "required": True, "metavar": "N"},
    "missing": {"type": click.Choice(CHOICES["missing"]), "default": "error", **_SHOWN},
    "weights": {"metavar": "W,W,..."},
    "last": {"type": int, "metavar": "N"},
    "ema": {"type": float, "metavar": "DECAY"},
    "precision": {"type": click.Choice(CHOICES["precision"]), "default": "float32", **_SHOWN},
    "output": {"metavar": "RULES"},
    "check": {**_FLAG, "name": "is_check"},
    "manifest": {"metavar": "FILE"},
    "scan_layers": {"flags": "--scan_layers/--no-scan_layers", "default": None},
    "layer_axis": {"type": click.IntRange(min(AXES), max(AXES))},
    "layer_group": {"multiple": True, "metavar": "NAME"},
    "family": {"metavar": "NAME|FILE"},
    "step": {"metavar": "STEP"},
    "at": {"metavar": "KEY"},
    "at_b": {"metavar": "KEY"},
    "adapter_at": {"metavar": "KEY"},
    "at_template": {"metavar": "KEY"},
    "by_values": _FLAG,
    "drop": _GLOBS,
    "params_from": {"metavar": "KEY"},
    "replica": {"type": click.IntRange(0), "metavar": "I"},
    "params_only": _FLAG,
    "without": {"multiple": True, "metavar": "PART"},
    "strict": _FLAG,
    "compare_only": {"type": click.Choice(CHOICES["compare_only"]), "default": "params", **_SHOWN},
    "filter": _GLOBS,
    "exclude": _GLOBS,
    "ignore_rngs": {"flags": "--ignore_rngs/--no-ignore_rngs", "default": True, **_SHOWN},
    "dtype": {"type": click.Choice(CHOICES["dtype"])},
    "compression": {"metavar": "zstd:LEVEL|none"},
    "max_memory": {"default": "2GiB", "metavar": "SIZE", **_SHOWN},
    "transfer": {"type": click.Choice(CHOICES["transfer"]), "default": "copy", **_SHOWN},
    "shard_size": {"default": "5GB", "metavar": "SIZE", **_SHOWN},
    "compare_values": _FLAG,
    "atol": {"type": float, "default": 1e-5, **_SHOWN},
    "rtol": {"type": float, "default": 1e-5, **_SHOWN},
    "equal_nan": {"flags": "--equal_nan/--no-equal_nan", "default": True, **_SHOWN},
    "ignore_dtype": _FLAG,
    "dequantize": _FLAG,
    "dry_run": _FLAG,
    "verify": _FLAG,
    "overwrite": _FLAG,
    "resume": _FLAG,
    "allow_uncommitted": _FLAG,
    "distributed": _FLAG,
    "coordinator_address": {"metavar": "HOST:PORT"},
    "num_processes": {"type": int, "metavar": "N"},
    "process_id": {"type": int, "metavar": "I"},
}
"""How click declares each option; what they mean is said in `commands.options`."""

DISTRIBUTED = ("distributed", "coordinator_address", "num_processes", "process_id")
"""The options by which several processes find each other."""


def options(
    function: str, *names: str, **changes: Mapping[str, Any]
) -> Callable[[Decorated], Decorated]:
    """Gives a command the options of a function of the library; `changes` are of their settings."""

    def decorate(command: Decorated) -> Decorated:
        for name in reversed(names):
            settings = {**SETTINGS[name], **changes.get(name, {})}
            if name in ("to", "from_"):
                settings["type"] = Layout(function, name)
            flags = settings.pop("flags", f"--{name.rstrip('_')}")
            argument = settings.pop("name", name)
            text = sentence(text_of(function, name))
            command = click.option(flags, argument, help=text, **settings)(command)
        return command

    return decorate


def sentence(text: str) -> str:
    """A text of `commands.options` as help writes it.

    >>> sentence("show the plan; write nothing")
    'Show the plan; write nothing.'
    """
    return f"{text[0].upper()}{text[1:]}."


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options of each group under its name."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (*GROUPS, "Output")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups[group_of(param.name or "")].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def one_of(position: str, option: str, a: str | None, b: str | None) -> str:
    """A path that was given once, as a position or as an option."""
    if a is not None and b is not None:
        raise click.UsageError(f"{position} and {option} mean the same: give one of them")
    found = a if a is not None else b
    if found is None:
        raise click.UsageError(f"{position} is missing")
    return found
