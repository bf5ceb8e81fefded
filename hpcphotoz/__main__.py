"""`python -m hpcphotoz` and the console script: an error that the user can correct is one line, status 2."""

import signal
import sys
from collections.abc import Sequence

from hpcphotoz import output

_BROKEN_PIPE_STATUS = 128 + 13  # as the shell reports a program that SIGPIPE has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status.

    0: done; 1: failed; 2: bad input, or a file or disk that cannot be used; 130: interrupted; 141: the reader
    of the output has ended.

    Args:
        arguments: words after the program's name; those of this process by default.
    """
    interrupts = _InterruptRecorder()
    try:
        output.prepare()
        status = _run(sys.argv[1:] if arguments is None else arguments)
        output.flush()
        return status
    except KeyboardInterrupt:  # also during the imports, which take most of a second
        return _report_failure("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe, such as head or less, has ended: no error
        output.discard(sys.stdout)
        return _BROKEN_PIPE_STATUS
    except OSError as error:
        return _report_failure(f"error: {error.filename or 'output'}: {error.strerror or error}", 2)
    except MemoryError as error:
        return _report_failure(f"error: out of memory {error}", 1)
    except Exception:
        if interrupts.seen:
            return _report_failure("interrupted", 130)
        raise
    finally:
        interrupts.end()


class _InterruptRecorder:
    """Records Ctrl-C, because numpy turns an interrupt during its import into an ImportError."""

    def __init__(self) -> None:
        self.seen = False
        self._ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            try:
                signal.signal(signal.SIGINT, self._note)
            except ValueError:  # called in a thread, where Ctrl-C does not arrive
                self._ours = False

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def end(self) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(arguments: Sequence[str]) -> int:
    from hpcphotoz.cli import run
    from hpcphotoz.errors import BadInput

    try:
        return run(arguments)
    except BadInput as error:
        return _report_failure(f"error: {error}", 2)
    except SystemExit as end:  # help and version, or an error that another rank has reported
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _report_failure(text: str, status: int) -> int:
    output.say(f"hpcphotoz: {' '.join(text.split())}", sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
