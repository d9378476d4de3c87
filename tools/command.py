"""A command line: fire reads it, and what goes wrong is one line and an exit status."""
import os
import sys
from collections.abc import Callable
from textwrap import dedent

from common import Misuse


def call(tool: str, describe: Callable, argv: list[str]) -> dict:
    """The parameters of `describe` that a command line gives, all as text but for flags.

    `describe` has `*paths` and keywords, and returns a namespace of them. Those that are `False` by default are flags.
    """
    defaults = describe.__kwdefaults__
    flags = {f"--{name.replace('_', sign)}": name for name in defaults if defaults[name] is False for sign in "_-"}
    flags |= {f"-{name[0]}": name for name in flags.values() if [n[0] for n in defaults].count(name[0]) == 1}
    known = {f"--{name.replace('_', sign)}" for name in defaults for sign in "_-"} | flags.keys()
    if {"-h", "--help"} & set(argv):
        print(dedent(f"    {describe.__doc__}").rstrip())
        raise SystemExit(0)
    if unknown := [a for a in argv if a[:1] == "-" and a.partition("=")[0] not in known]:
        raise Misuse(f"{unknown[0]}: no such option, see --help")
    if all(a in flags or a[:1] != "-" for a in argv):      # fire takes a third of an export to load
        given = describe(*[a for a in argv if a not in flags], **{flags[a]: True for a in argv if a in flags})
    else:
        import fire
        from fire.decorators import SetParseFn  # text, or 01 would be a number
        args = [f"--{flags[a]}=True" if a in flags else a for a in argv]     # or a path after it were its value
        given = fire.Fire(SetParseFn(str)(describe), args, name=tool, serialize=lambda result: None)
    values = vars(given)
    for name in set(flags.values()):
        if str(values[name]) not in ("True", "False"):
            raise Misuse(f"--{name} takes no value, not {values[name]!r}")
        values[name] = str(values[name]) == "True"
    return values


def run(tool: str, describe: Callable, act: Callable[..., int], argv: list[str] | None = None) -> int:
    "Does what the command line asks for: `act` gets the parameters. Returns the exit status."
    for stream in sys.stdout, sys.stderr:
        getattr(stream, "reconfigure", dict)(errors="backslashreplace")
    try:
        status = act(**call(tool, describe, sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()                                 # so that a broken pipe shows here and not at exit
        return status
    except SystemExit as e:
        return int(e.code or 0)
    except Misuse as e:
        print(f"{tool}: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:                                # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as e:
        print(f"{tool}: {e.filename or 'output'}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
