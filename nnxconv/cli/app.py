"""The command group, and the one place where an error becomes an exit code."""

import os
import sys
import traceback

import click

from nnxconv import __version__
from nnxconv.cli.average import average
from nnxconv.cli.checksum import checksum
from nnxconv.cli.compare import compare
from nnxconv.cli.convert import convert
from nnxconv.cli.gpt3_from_paxml import gpt3_from_paxml
from nnxconv.cli.inspect import inspect
from nnxconv.cli.match import match
from nnxconv.cli.merge_lora import merge_lora
from nnxconv.cli.output import say
from nnxconv.cli.qk_clip import qk_clip
from nnxconv.errors import NnxconvError, with_notes
from nnxconv.running import check_program
from nnxconv.storage import Terminated, ignore_signals

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("-", "_"),
    "max_content_width": 100,
}


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="nnxconv")
def nnxconv() -> None:
    """Moves JAX/Flax checkpoints between layouts: Linen, NNX and MaxText.

    Works on Orbax checkpoints, on CPU only, with bounded memory. Options may be spelled with
    underscores or dashes.

    Exit codes: 0 done, 1 different (compare, checksum --check) or undecided (match), 2 not done
    (the message says why), 70 a defect of nnxconv, 130 interrupted, 143 terminated.
    """


nnxconv.add_command(convert)
nnxconv.add_command(compare)
nnxconv.add_command(inspect)
nnxconv.add_command(match)
nnxconv.add_command(checksum)
nnxconv.add_command(average)
nnxconv.add_command(merge_lora)
nnxconv.add_command(qk_clip)
nnxconv.add_command(gpt3_from_paxml)


def run() -> None:
    """Runs the command; every deliberate error ends in one message and exit code 2."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        check_program()
        code = nnxconv.main(standalone_mode=False)
        ignore_signals()
        sys.exit(code)
    except NnxconvError as error:
        _fail(with_notes(error.render(), error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        place = f"\n  at {error.filename}" if error.filename else ""
        _fail(with_notes(f"error: {error.strerror or error}{place}", error), 2)
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop, Terminated) or isinstance(stop.__cause__, Terminated):
            _fail(with_notes("terminated: nothing was committed", stop), 143)
        _fail(with_notes("interrupted: nothing was committed", stop), 130)
    except Exception:
        traceback.print_exc()
        _fail("error: this is a defect of nnxconv; nothing was committed", 70)


def _fail(message: str, code: int) -> None:
    ignore_signals()
    say(message, err=True)
    sys.exit(code)
