"""The command line: commands in the order of the flow. It parses, calls and prints; the work is done in `prefdata`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from prefdata.errors import InputError, PrefdataError, storage_error
from prefdata.printable import printable_lines
from prefdata.specs.other_names import normalised, our_name, without_setting
from prefdata.sql.interrupt import still_running

from . import check, curves, demo, explain, export, ingest, pair, rank, run, sample, select, sql, status, train
from . import eval as evaluate
from .help import Command, CommandGroup

ClickUsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's exception for wrong usage, whichever module defines it."""


class OrderedGroup(CommandGroup):
    """The commands in the order of the flow; a closed pipe raises a class that typer does not catch.

    `make_context` prints the help of the group, `invoke` runs a command or prints its help.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names in the order of FLOW."""
        return [name for name in FLOW if name in self.commands]

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Read the options."""
        with _closed_pipe():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _closed_pipe():
            return super().invoke(ctx)


class OutputClosed(Exception):
    """The reader of our output has closed it."""


@contextmanager
def _closed_pipe() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed from None


FLOW = (
    "demo",
    "run",
    "recipes",
    "ingest",
    "sample",
    "rank",
    "select",
    "pair",
    "export",
    "train",
    "eval",
    "curves",
    "check",
    "sql",
    "status",
    "explain",
)

INTERRUPTED = 130
"""The exit code of a command that was stopped by Ctrl-C."""

UNREAD = 141
"""The exit code of a command whose output was closed: the shell's for SIGPIPE."""

app = typer.Typer(
    name="prefdata",
    cls=OrderedGroup,
    pretty_exceptions_enable=False,
    help="Preference data from prompts to a better model. Every run is a directory of Parquet tables.",
    epilog="Example: prefdata demo runs/demo",
)

app.command("ingest", cls=Command, epilog=ingest.EXAMPLE)(ingest.ingest)
app.command("sample", cls=Command, epilog=sample.EXAMPLE)(sample.sample)
app.command("rank", cls=Command, epilog=rank.EXAMPLE)(rank.rank)
app.command("select", cls=Command, epilog=select.EXAMPLE)(select.select)
app.command("pair", cls=Command, epilog=pair.EXAMPLE)(pair.pair)
app.command("export", cls=Command, epilog=export.EXAMPLE)(export.export)
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="eval")
app.command("curves", cls=Command, epilog=curves.EXAMPLE)(curves.curves)
app.add_typer(check.app, name="check")
app.command("sql", cls=Command, epilog=sql.EXAMPLE)(sql.sql)
app.command("status", cls=Command, epilog=status.EXAMPLE)(status.status)
app.command("explain", cls=Command, epilog=explain.EXAMPLE)(explain.explain)
app.command("run", cls=Command, epilog=run.EXAMPLE)(run.run)
app.command("recipes", cls=Command, epilog=run.RECIPES_EXAMPLE)(run.recipes)
app.command("demo", cls=Command, epilog=demo.EXAMPLE)(demo.demo)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"prefdata {version('prefdata')}")
        raise typer.Exit


WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""How torch's threads wait, which it reads when it is imported: spinning makes a busy machine ten times slower."""


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works after any command.")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and stop.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line.

    Exit 0 when done, 2 for wrong usage or bad input, 1 for a failure, 130 for Ctrl-C, 141 for a closed pipe.
    """
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the locale lacks must not stop a command
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, prog_name="prefdata", standalone_mode=False)
        with _closed_pipe():
            print(end="", flush=True)  # flushing the buffer may fail too
        if code == INTERRUPTED:  # typer's exit code for Ctrl-C
            raise KeyboardInterrupt
    except PrefdataError as error:
        code = _fail(f"prefdata: {error}", error.exit_code, debug)
    except ClickUsageError as error:
        code = _fail(f"prefdata: {usage_message(error)}", 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        _say_no_more()
        code = _fail(
            "prefdata: stopped; what was finished is kept, and the same command continues.", INTERRUPTED, debug
        )
    except OutputClosed:
        _say_no_more()
        code = UNREAD
    except SystemExit as ended:  # of --install-completion and --show-completion
        code = ended.code
    except Exception as error:
        if refused := _refused(error):
            _say_no_more()
            sys.exit(_fail(f"prefdata: {refused}", 1, debug))
        if isinstance(error, OSError) and error.filename is not None and _replaced(error) is None:
            sys.exit(_fail(f"prefdata: {_of_a_file(error)}", 2, debug))
        if full := _memory_full(error):
            sys.exit(_fail(f"prefdata: {full}", 1, debug))
        if debug:
            raise
        bug = f"{type(error).__name__}: {error} (a bug: see the traceback with --debug)"
        code = _fail(f"prefdata: {_replaced(error) or bug}", 1, debug)
    if code == INTERRUPTED and still_running():  # an exit as usual would wait for a query that cannot be stopped
        os._exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _refused(error: Exception) -> PrefdataError | None:
    """Return the error for what could not be printed; None for a file's, which has a name or an error of its own."""
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    return storage_error(error, Path("standard output"))


def _replaced(error: Exception) -> str | None:
    """Return the message for a part that was removed or replaced between its listing and its reading."""
    if isinstance(error, FileNotFoundError) and "part-" in str(error):
        return f"another process replaced what was being read ({error}). Run the same command again."
    return None


def _memory_full(error: Exception) -> str | None:
    """Return the message for GPU or CPU memory that is full where no smaller batch helps."""
    if "torch" in sys.modules:
        from prefdata.models.memory import is_out_of_memory

        full = is_out_of_memory(error)
    else:
        full = isinstance(error, MemoryError)
    lower = "Lower --batch-tokens (train: --micro-tokens, --max-length), use a smaller model"
    lower = lower if "torch" in sys.modules else "Use less data at a time, a machine with more memory"
    what = ". ".join(" ".join(str(error).split()).split(". ")[:2]) or type(error).__name__
    return (
        f"memory is full ({what}). {lower}, or stop what else uses this memory. "
        "What was finished is kept, and the same command continues."
        if full
        else None
    )


def _of_a_file(error: OSError) -> PrefdataError:
    """Return the error for a path that the operating system refuses, where the step gave no message of its own."""
    path = Path(os.fsdecode(error.filename))
    return storage_error(error, path) or InputError(f"cannot use {path}: {error.strerror}. Choose another path.")


def _say_no_more() -> None:
    """Discard further output, also when Python flushes at the end."""
    with suppress(io.UnsupportedOperation):  # an output that is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        print(printable_lines(traceback.format_exc()), file=sys.stderr)
    print(printable_lines(message), file=sys.stderr)
    return code


def usage_message(error: Exception) -> str:
    """Return what is wrong with a command line, in one line that names the help to read."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "prefdata"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    message = message.replace("Value error, ", "")  # pydantic's, in a choice that typer refuses
    if context is not None and (option := getattr(error, "option_name", None)) is not None:
        message = _other_tools_name(option, context) or message
    return f"{' '.join(message.split()).rstrip('.')}. See {command} --help."


def _other_tools_name(option: str, context: Any) -> str | None:
    """Return the message for an option that another tool has; None where no known tool has it."""
    known = {normalised(flag): param.opts[0] for param in context.command.params for flag in param.opts}
    if ours := our_name(option, known):
        return f"there is no option {option}: here it is {known[ours]}"
    why = without_setting(option, known)
    return why and f"there is no option {option}: {why}"
