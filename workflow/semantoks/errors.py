"""What a user sees when something is wrong: one message, no traceback, exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence


class UserError(ValueError):
    """A mistake in the user's files or settings.

    The message names the file or key, what was expected, what was found and what to do.
    """


_ADVICE = {
    errno.ENOSPC: "no space is left on its disk; free some and start again, finished files are kept",
    errno.EDQUOT: "your quota on its disk is used up; free some and start again, finished files are kept",
    errno.EROFS: "its disk is mounted read-only; choose another folder (`results_dir`) or have it mounted writable",
    errno.EACCES: "permission is denied; choose another folder (`results_dir`) or have the permissions changed",
}


def disk_error(error: OSError) -> UserError | None:
    """What a user can do about a disk that does not take a file; None for any other error."""
    advice = _ADVICE.get(error.errno or 0)
    return UserError(f"{error.filename or 'a file'}: cannot be written or read: {advice}") if advice else None


def run_command(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a stage's command line; a :class:`UserError` or a full disk becomes one message and exit code 2."""
    try:
        main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        message = disk_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
