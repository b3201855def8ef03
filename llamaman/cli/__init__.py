"""The command line. Importing this package is cheap; each command imports what it needs when it runs.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no manager could be reached, 78 the environment is
wrong (EX_CONFIG), 130 interrupted. An error is one sentence on stderr, never a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    :param argv: the arguments without the program's name; ``sys.argv`` when None.
    """
    import click

    from llamaman.cli.output import complain
    from llamaman.cli.root import cli
    from llamaman.client import Unreachable
    from llamaman.errors import LlamaManError

    try:
        result = cli.main(
            list(argv) if argv is not None else None, prog_name="llamaman", standalone_mode=False
        )
        return result if isinstance(result, int) else OK
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        complain(error.format_message())
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Unreachable as error:
        complain(error.message)
        return UNREACHABLE
    except LlamaManError as error:
        complain(error.message)
        return int(getattr(error, "exit_status", FAILED))
    except BrokenPipeError:  # `llamaman logs | head`: the reader has enough, which is no error
        sys.stderr.close()
        return OK
    except Exception as error:  # noqa: BLE001 - the promise of this module: a sentence, never a traceback
        complain(f"unexpected {type(error).__name__}: {error}; please report this with the command you ran")
        return FAILED
