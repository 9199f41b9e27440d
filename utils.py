"""What every script uses: how it ends, and the indices of the special tokens."""

import os
import sys
from collections.abc import Callable

# Indices of <pad> <sos> <eos> <unk>: what data and models agree on without knowing each other.
PAD, SOS, EOS, UNK = range(4)


class UserError(Exception):
    """Something the user can mend. The message is one line: the thing, the place, the mend."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: status 2 and one line for a UserError, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has gone. Point stdout nowhere so that the interpreter's own flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
