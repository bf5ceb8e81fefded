"""`python -m hpcphotoz` and the console script: errors a user can mend are one line and exit status 2."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.

    Args:
        arguments: words after the program's name; those of this process by default.
    """
    from hpcphotoz.cli import run
    from hpcphotoz.errors import BadInput

    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except BadInput as error:
        print(f"hpcphotoz: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hpcphotoz: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone: nothing is wrong, and nothing more can be said.
        sys.stderr.close()
        return 1
    except PermissionError as error:
        print(f"hpcphotoz: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
