"""What a user sees when something is wrong: one message, no traceback, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class UserError(ValueError):
    """A mistake in the user's files or settings.

    The message names the file or key, what was expected, what was found and what to do.
    """


def run_command(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a stage's command line; a :class:`UserError` becomes one message and exit code 2."""
    try:
        main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
