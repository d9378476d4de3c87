"""A command line: argparse reads it, and what goes wrong is one line and an exit status."""
import argparse
import os
import sys
from collections.abc import Callable

from common import Misuse


class Parser(argparse.ArgumentParser):
    "The command line of a tool: `paths`, and what is added."

    def __init__(self, tool: str, description: str | None, paths: str):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(tool, description=description, allow_abbrev=False, formatter_class=raw)
        self.add_argument("paths", nargs="*", help=paths)

    def error(self, message: str):
        raise Misuse(message.removeprefix("argument "))

    def flag(self, name: str, does: str) -> None:
        self.add_argument(f"--{name}", action="store_true", help=does)


def run(parser: Parser, act: Callable[[argparse.Namespace], int], argv: list[str] | None = None) -> int:
    "Does what the command line asks for: `act` gets what it says. Returns the exit status."
    for stream in sys.stdout, sys.stderr:
        getattr(stream, "reconfigure", dict)(errors="backslashreplace")
    try:
        status = act(parser.parse_intermixed_args(argv))
        sys.stdout.flush()                                 # so that a broken pipe shows here and not at exit
        return status
    except SystemExit as e:                                # --help
        return int(e.code or 0)
    except Misuse as e:
        print(f"{parser.prog}: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:                                # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as e:
        print(f"{parser.prog}: {e.filename or 'output'}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
