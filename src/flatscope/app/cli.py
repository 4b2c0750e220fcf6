"""The command `flatscope`: reads the command line, loads a command's code only when it is called."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import click

from flatscope import __version__
from flatscope.app.startup import load_late, pause_collecting

EXIT_FINE, EXIT_SOME_FAILED, EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

# Name of a command to (its module, its line in `flatscope --help`). Loading one may take half a second, so the list
# must not need them.
_COMMANDS = {
    "flakes": ("flakes", "Find flakes in pictures and count their layers."),
    "twist": ("twist", "Measure the twist angle of stacked crystals."),
    "atoms": ("atoms", "Find the atomic columns of a monolayer in ADF-STEM images or HRTEM focal series."),
    "moire": ("moire", "Measure twisted bilayers in ADF-STEM images, and the columns of both layers."),
    "defects": ("defects", "Find, name and follow point defects in ADF-STEM images and movies."),
    "open": ("open", "See, correct, teach and export a run in the browser (extra: serve)."),
    "export": (
        "export",
        "Write a finished run in other formats: COCO, labelme, ImageJ, GDSII, CIF and more.",
    ),
    "simulate": ("simulate", "Draw electron micrographs with known truth (extra: simulate)."),
    "fit-noise": ("fit_noise", "Measure the noise of a scanned image."),
    "demo": ("demo", "Draw three micrographs with known truth and analyse them."),
    "setup": ("setup", "Keep a microscope's profile, for --setup, and check whether it still holds."),
    "materials": ("materials", "List the materials and where their optics come from."),
    "schema": ("schema", "Print the JSON schema of a settings file or of a table."),
    "evaluate": ("evaluate", "Measure how good the answers are."),
    "train": ("train", "Train a network by a recipe (extra: train)."),
    "benchmark": ("benchmark", "Measure how fast networks run here (extra: train)."),
    "reproduce": ("reproduce", "Run a published study beside flatscope (extra: train)."),
}


def find_command(name: str) -> click.Command:
    """The command of a name of `_COMMANDS`: what its module calls by the module's own name."""
    module = _COMMANDS[name][0]
    with pause_collecting():
        command: click.Command = getattr(importlib.import_module(f"flatscope.app.commands.{module}"), module)
    return command


def require_training() -> None:
    """Say what is missing, where the extra `train` is not installed.

    Raises
    ------
    click.ClickException
        With the way out.
    """
    for package in ("torch", "onnx"):
        if importlib.util.find_spec(package) is None:
            raise click.ClickException(f"training needs {package}: pip install 'flatscope[train]'")


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return find_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 all is well; 1 some pictures failed, the others are answered; 2 bad input, settings or "
    "weights; 3 a bug; 130 interrupted, what was finished is written.",
)
@click.version_option(__version__, prog_name="flatscope", message="%(prog)s %(version)s")
def cli() -> None:
    """Two-dimensional crystals under a microscope: flakes, layers and twist angles in light micrographs, atomic columns
    and defects in electron micrographs and movies, each with how sure it is.

    Start with: flatscope flakes photo.jpg --material graphene --oxide-nm 90 --um-per-px 0.15 --out results
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    load_late()
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    args
        Without the program's name; None takes those of the process.

    Returns
    -------
    Exit code. Errors are one line on stderr.
    """
    try:
        code: Any = cli.main(args=args, prog_name="flatscope", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_BAD_INPUT
    except click.UsageError as error:
        command = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return _complain(error.format_message().rstrip(".") + command)
    except click.ClickException as error:
        return _complain(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        click.echo("flatscope: interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more when it flushes at exit.
        sys.stdout = None
        return EXIT_FINE
    except Exception as error:
        if not _is_expected(error):
            import traceback

            traceback.print_exc()
            _complain("this is a bug: please report it with the lines above")
            return EXIT_BUG
        return _complain(str(error))
    return code if isinstance(code, int) else EXIT_FINE


def _complain(message: str) -> int:
    click.echo("flatscope: " + " ".join(message.split()), err=True)
    return EXIT_BAD_INPUT


def _is_expected(error: Exception) -> bool:
    """True for an error whose message was written for the user."""
    homes = {
        "LostWorkerError": "flatscope.parallel",
        "MicrographError": "flatscope.micrograph",
        "WeightsError": "flatscope.inference.card",
        "WriteError": "flatscope.files.write",
        "SettingsError": "flatscope.runs.settings",
        "RecipeError": "flatscope.training.recipes",
        "ExportError": "flatscope.training.onnx_export",
        "MultisliceError": "flatscope.electron.physics.multislice",
    }
    # By name and home: importing them all to compare would load torch and pandas.
    return any(homes.get(kind.__name__) == kind.__module__ for kind in type(error).__mro__)
