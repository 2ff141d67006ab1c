"""The command line: one command is one function, and the README shows what happens."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import nnxconv
from nnxconv.cli.app import nnxconv as command
from nnxconv.cli.arguments import SETTINGS
from nnxconv.commands.options import GROUPS, group_of
from tests.support import checkpoints

README = Path(__file__).parents[2] / "README.md"
NOT_OPTIONS = {"watch"}
ONLY_OPTIONS = {
    "convert": {"as_json", "source", "target"},
    "compare": {"as_json", "a", "b", "verbose", "reports", "overwrite", "transpose_nnx_layers"},
    "inspect": {"as_json", "tree", "depth", "filters", "shardings"},
    "match": {"as_json", "interactive", "page", "source"},
    "checksum": {"as_json", "is_check"},
    "average": {"as_json", "paths"},
    "merge-lora": {"as_json", "base", "adapter", "target"},
    "qk-clip": {"as_json", "source", "target"},
    "gpt3-from-paxml": {"as_json", "source", "target", "paxml_ckpt_path", "output_path"},
}
"""What only people want, and the words that stand for paths."""
FUNCTIONS = {
    "convert": nnxconv.convert,
    "compare": nnxconv.compare,
    "inspect": nnxconv.inspect,
    "match": nnxconv.match,
    "checksum": nnxconv.write_checksums,
    "average": nnxconv.average,
    "merge-lora": nnxconv.merge_lora,
    "qk-clip": nnxconv.qk_clip_checkpoint,
    "gpt3-from-paxml": nnxconv.gpt3_from_paxml,
}
PATHS = {
    "match": {"source_path"},
    "gpt3-from-paxml": {"source_path", "target_path"},
    "average": {"source_paths", "target_path"},
    "merge-lora": {"base_path", "adapter_path", "target_path"},
    "qk-clip": {"source_path", "target_path"},
}
"""Paths of a function whose words on the command line are called otherwise."""


NEEDED = {
    "qk-clip": {"--max_logits": "l.npz", "--threshold": "2.5", "--qk_nope_head_dim": "8"},
}
"""Options without a default."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_and_its_function_have_the_same_options_and_defaults(name):
    function = inspect.signature(FUNCTIONS[name]).parameters
    count = {"inspect": 1, "checksum": 1, "merge-lora": 3}.get(name, 2)
    paths = ["a", "b", "c"][:count]
    paths += [word for option, value in NEEDED.get(name, {}).items() for word in (option, value)]
    parsed = command.commands[name].make_context(name, paths).params
    options = {key: value for key, value in parsed.items() if key not in ONLY_OPTIONS[name]}
    assert options.keys() == function.keys() - NOT_OPTIONS - PATHS.get(name, set())
    for key, value in options.items():
        default = function[key].default
        if default is not inspect.Parameter.empty:
            assert value == default, key
        elif name in NEEDED:
            assert str(value) == NEEDED[name][f"--{key}"]


def test_every_command_has_its_function():
    assert FUNCTIONS.keys() == command.commands.keys()


WITHOUT_COMMAND = (nnxconv.check_checksums, nnxconv.load, nnxconv.load_into, nnxconv.open)


@pytest.mark.parametrize("function", [*FUNCTIONS.values(), *WITHOUT_COMMAND])
def test_a_function_says_what_each_of_its_arguments_is(function):
    [described] = re.findall(r"Args:\n(.*?)(?:\n\n|$)", inspect.getdoc(function), re.S)
    names = re.findall(r"^  (\w+): ", described, re.M)
    assert names == list(inspect.signature(function).parameters)


@pytest.fixture
def linen(tmp_path):
    return checkpoints.save_item(tmp_path / "linen", checkpoints.linen())


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


@pytest.mark.parametrize(
    "spelled",
    [
        ["--scan_layers", "--layer_axis", "0", "--to", "nnx_pure"],
        ["--scan-layers", "--layer-axis", "0", "--to", "nnx-pure"],
    ],
)
def test_options_are_spelled_with_underscores_or_dashes(spelled, linen, tmp_path):
    outcome = run("convert", linen, tmp_path / "out", *spelled, "--json")
    result = json.loads(outcome.stdout)
    assert result["target"]["layout"] == "nnx-pure"
    assert result["layers"] == [
        {
            "group": "decoder.layers",
            "count": 3,
            "before": "apart as name_0",
            "after": "stacked on axis 0",
        }
    ]


def test_paths_can_be_options_as_existing_scripts_have_them(linen, tmp_path):
    outcome = run("convert", "--source_path", linen, "--target_path", tmp_path / "out")
    assert outcome.exit_code == 0
    assert nnxconv.compare(str(linen), str(tmp_path / "out"), compare_values=True).is_match


def test_a_path_that_is_given_twice_or_not_at_all_is_a_usage_error(linen, tmp_path):
    twice = run("convert", linen, tmp_path / "out", "--source_path", linen)
    assert (twice.exit_code, "SRC and --source_path mean the same" in twice.output) == (2, True)
    missing = run("convert", linen)
    assert (missing.exit_code, "DST is missing" in missing.output) == (2, True)


def test_a_dry_run_shows_the_plan_and_writes_nothing(linen, tmp_path):
    outcome = run("convert", linen, tmp_path / "out", "--dry_run")
    lines = outcome.stdout.splitlines()
    assert lines[0] == "would convert linen to nnx"
    [row] = [line for line in lines if line.startswith("model.decoder.layers.mlp.wi.kernel.value")]
    assert row.split(maxsplit=3)[1:3] == ["f32[16,3,32]", "rewrite"]
    assert "layers_0.mlp.wi.kernel to params.params.decoder.layers_2.mlp.wi.kernel" in row
    assert re.fullmatch(
        r"\d+ arrays? renamed, .+; \d+ arrays rewritten, .+; predicted peak .+", lines[-1]
    )
    assert not (tmp_path / "out").exists()


def test_a_direction_that_the_source_does_not_have_says_what_it_is(linen, tmp_path):
    with pytest.raises(nnxconv.NnxconvError) as error:
        nnxconv.convert(str(linen), str(tmp_path / "out"), direction="nnx_to_linen")
    assert error.value.render() == (
        "error: `--direction nnx_to_linen` needs a nnx source, but this is a linen checkpoint\n"
        "  weights under `params/params`\n"
        "  `opt_state` at the root, its chains are sequences\n"
        "\n"
        "hint: leave `--direction` out, or name the layout that you want with `--to`"
    )


def test_help_needs_neither_jax_nor_tensorstore():
    code = (
        "import sys\nfrom nnxconv.cli import main\nsys.argv = ['nnxconv', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'jax', 'tensorstore', 'orbax'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_nnxconv_is_the_command(tmp_path):
    absent = str(tmp_path / "absent")
    command = [sys.executable, "-m", "nnxconv", "inspect", absent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: `{absent}` does not exist\n"


def test_the_session_that_opens_the_readme_is_what_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(README.parent)
    [session] = re.findall(r"```console\n(\$ nnxconv convert.*?)```", README.read_text(), re.S)[:1]
    commands = re.findall(r"^\$ nnxconv (.*)$", session, re.M)
    assert len(commands) == 2
    target = str(tmp_path / "nnx_checkpoint")
    printed = [
        run(*text.replace("/tmp/nnx_checkpoint", target).split()).stdout for text in commands
    ]
    shown = re.split(r"^\$ nnxconv .*\n", session, flags=re.M)[1:]
    for expected, actual in zip(shown, printed, strict=True):
        actual = actual.replace(target, "/tmp/nnx_checkpoint").replace(f"{README.parent}/", "")
        assert _without_timing(actual) == _without_timing(expected)


def _without_timing(text):
    """Times and peaks differ from run to run, and trailing blank lines do not matter."""
    return re.sub(r"in [\d.]+ s; peak memory .*", "in TIME", text).strip()


@pytest.mark.parametrize("name", sorted(command.commands))
def test_the_help_of_a_command_shows_each_option_once_in_its_group(name):
    shown = run(name, "--help").stdout
    sections = re.split(r"^(\w[\w ]*):\n", shown.partition("\n\n")[2], flags=re.M)
    groups = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(groups) == [group for group in (*GROUPS, "Output") if group in groups]
    for param in command.commands[name].params:
        if isinstance(param, click.Option) and not param.hidden:
            row = re.compile(rf"^  {re.escape(param.opts[0])}\b", re.M)
            places = [group for group, text in groups.items() if row.search(text)]
            assert places == [group_of(param.name)], param.name


def test_the_list_of_commands_cuts_no_summary():
    shown = run("--help").stdout
    assert "..." not in shown.partition("Commands:")[2]
    for name, one in command.commands.items():
        assert re.search(rf"^  {name} +{re.escape(one.short_help)}$", shown, re.M)


def test_every_option_is_declared_and_explained_once():
    explained = [name for texts in GROUPS.values() for name in texts]
    assert len(explained) == len(set(explained))
    assert set(SETTINGS) <= set(explained)
