"""The command line. This module imports no torch, so that help and mistakes answer at once."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Sequence

from transduce.core.errors import UserError, nearest

from . import launch

COMMANDS = {
    "systems": ("transduce.cli.info", "systems_command", "list the systems"),
    "show": ("transduce.cli.info", "show_command", "describe one system and its settings"),
    "fit": ("transduce.cli.fit", "fit_command", "train a system on a built-in corpus or your own file"),
    "eval": ("transduce.cli.use", "eval_command", "measure a trained model"),
    "predict": ("transduce.cli.use", "predict_command", "ask a trained model"),
    "data": ("transduce.cli.check_data", "data_command", "check your own data before you train on them"),
    "replay": ("transduce.cli.replay", "replay_command", "compute the step again at which a run lost its numbers"),
    "reproduce": (
        "transduce.cli.info",
        "reproduce_command",
        "run a system's full check against its paper's claims",
    ),
    "compare": ("transduce.cli.compare", "compare_command", "compare systems under one budget"),
    "bench": ("transduce.cli.bench", "bench_command", "measure every mixer on the same small tasks"),
    "sweep": ("transduce.cli.sweep", "sweep_command", "search for good settings of a system"),
    "doctor": ("transduce.cli.doctor", "doctor_command", "say what works on this machine and what does not"),
    "laws": ("transduce.cli.info", "laws_command", "tell which law of the state protocol a layer breaks"),
    "conform": ("transduce.cli.conform", "conform_command", "tell which promises of decoding any causal model keeps"),
}

REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""What the operating system answers where the user has to do something."""

NO_MEMORY = "There is not enough memory; try a smaller --batch-symbols, a smaller beam or a smaller model."

EXAMPLES = """  transduce fit rnnsearch --data cmudict --out runs/g2p
  transduce predict runs/g2p transducer loom
  transduce fit transformer --data pairs.tsv --out runs/mine --max-time 20m"""


def help_text() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: transduce COMMAND ...",
            "",
            "Sequence modelling in PyTorch.",
            "",
            "commands:",
            *lines,
            "",
            "examples:",
            EXAMPLES,
            "",
            "`transduce COMMAND --help` lists the options of a command; `transduce --completion SHELL` prints",
            "a script that completes commands, systems, corpora and runs in bash, zsh or fish.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a missed claim, a broken law or a bug of ours, 2 for the
    user's mistake, 130 for Ctrl-C, 141 when the reader of a pipe has gone."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here, so that a reader who has gone is noticed here
        return launch.ending(code)
    except UserError as problem:
        return launch.ending(_fail(str(problem)))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes once more at its end; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return _fail(NO_MEMORY)
    except OSError as problem:
        if problem.errno not in REFUSALS:
            return _bug()
        return _fail(f"{problem.filename or 'A file'} cannot be used: {problem.strerror}.")
    except Exception as problem:
        # torch reports a lack of memory as a RuntimeError; its class for that is not imported here.
        if any(words in str(problem) for words in ("can't allocate memory", "out of memory")):
            return _fail(NO_MEMORY)
        if launch.others_ended():
            return 0
        return _bug()


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if len(arguments) > 1 and arguments[0] == "help":
            return _dispatch(arguments[1], ["--help"])
        print(help_text())
        return 0
    if arguments[0] == "--version":
        from transduce import __version__

        print(f"transduce {__version__}")
        return 0
    if arguments[0] in ("--completion", "--complete"):
        from .completion import answer

        return answer(arguments)
    return _dispatch(arguments[0], arguments[1:])


def _dispatch(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        raise UserError(
            f'There is no command "{name}".{nearest(name, COMMANDS)} Commands are {", ".join(COMMANDS)}.'
        )
    module, function, _ = COMMANDS[name]
    try:
        return getattr(importlib.import_module(module), function)(arguments) or 0
    except SystemExit as stop:  # tyro ends so after help (0) and after a mistake (2)
        return int(stop.code or 0)


def _fail(sentence: str) -> int:
    if launch.is_first():
        print(f"transduce: {sentence}", file=sys.stderr)
    return 2


def _bug() -> int:
    traceback.print_exc()
    print(
        "transduce: This is a mistake in transduce, not yours; please report it in the project's issue tracker, "
        "with the command and the lines above.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
