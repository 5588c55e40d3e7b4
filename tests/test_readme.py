"""What the README says is what the program does."""

import re
import shlex

from conftest import ROOT

from llenhance.checkpoints import checksums
from llenhance.methods import DEFAULT, METHODS

README = (ROOT / "README.md").read_text()


def test_table_of_methods():
    table = README.split("<!-- methods -->")[1].split("<!-- /methods -->")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()
    ][2:]
    expected = []
    for method in METHODS.values():
        controls = [f"`--{c.name}` {c.low:g}..{c.high:g}" for c in method.controls]
        controls += [f"`--scale` {scale}" for scale in method.scales[1:]]
        name = f"`{method.name}`" + (" (default)" if method.name == DEFAULT else "")
        count = f"{method.parameters:,}"
        expected.append([name, method.summary, count, ", ".join(controls)])
    assert rows == expected


def test_files_that_it_names_are_there():
    for target in [*re.findall(r"\]\(([^)#:]+)\)", README), "samples/dark.jpg", "LICENSE"]:
        assert (ROOT / target).is_file(), target


def test_commands_parse():
    """Every llenhance line of the README is one that the command line takes, up to its files."""
    import click

    from llenhance.cli import cli

    lines = [
        line.split("#")[0]
        for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
    ]
    commands = [line.split("|")[-1].strip() for line in lines if "llenhance" in line]
    commands = [c.split(">")[0] for c in commands if c.startswith("llenhance ")]
    assert len(commands) > 10
    for line in commands:
        words = shlex.split(line)[1:]
        with cli.make_context("llenhance", words, resilient_parsing=False) as context:
            name, command, rest = cli.resolve_command(
                context, [*context._protected_args, *context.args]
            )
            try:
                command.make_context(name, rest, parent=context)
            except click.UsageError as error:
                raise AssertionError(f"{line}: {error.message}") from None


def test_every_shipped_file_has_its_checksum():
    folder = ROOT / "weights"
    files = {p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".onnx")}
    assert set(checksums(folder / "SHA256SUMS")) == files


def test_every_method_has_a_card():
    cards = (ROOT / "weights" / "README.md").read_text()
    for method in METHODS:
        assert f"\n## {method}\n" in cards
