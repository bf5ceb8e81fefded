"""`python -m hpcphotoz` and the console script: an error that the user can correct is one line, status 2."""

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hpcphotoz import output
from hpcphotoz.world import under_torchrun

# Signals that stop a training: `train` ignores them once it has saved.
_IGNORED_AT_THE_END = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOPS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)
_ENDS = (signal.SIGTERM, signal.SIGHUP)  # of other commands: torchrun's, where another rank has failed
_BROKEN_PIPE_STATUS = 128 + 13  # as the shell reports a program that SIGPIPE has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status.

    0: done; 1: failed; 2: bad input, or a file or disk that cannot be used; 75: a training was asked to stop,
    and has saved, or has not begun; 130: interrupted (128 + n: ended by signal n); 141: the reader of the
    output has ended.

    Args:
        arguments: words after the program's name; those of this process by default.
    """
    words = sys.argv[1:] if arguments is None else arguments
    interrupts = _InterruptRecorder()
    if words[:1] == ["train"]:
        _handle(_STOPS, _end_before_training)
    else:
        _handle(_ENDS, _end_command)
    try:
        output.prepare()
        status = _run(words)
        output.flush()
        return status
    except _EndedBySignal as end:
        number = end.number
    except KeyboardInterrupt:  # also during the imports, which take most of a second
        return _report_failure("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe, such as head or less, has ended: no error
        output.discard(sys.stdout)
        return _BROKEN_PIPE_STATUS
    except OSError as error:
        return _report_failure(f"error: {error.filename or 'output'}: {error.strerror or error}", 2)
    except Exception as error:
        if interrupts.seen:
            return _report_failure("interrupted", 130)
        from hpcphotoz.errors import out_of_memory

        if told := out_of_memory(error):
            return _report_failure(f"error: {told}", 1)
        raise
    finally:
        interrupts.end(of_program=arguments is None)
    # After the error has gone: its frames can hold a temporary file that no `with` had taken over yet.
    gc.collect()
    if arguments is None:  # at once: MPI, for one, would wait for the other ranks as the program ends
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    return 128 + number


class _InterruptRecorder:
    """Records Ctrl-C, because numpy turns an interrupt during its import into an ImportError."""

    def __init__(self) -> None:
        self.seen = False
        self._before = dict[int, Any]()
        if threading.current_thread() is threading.main_thread():  # in others Ctrl-C does not arrive
            self._before = {number: signal.getsignal(number) for number in _IGNORED_AT_THE_END}
            if self._before[signal.SIGINT] is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._note)

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def end(self, of_program: bool) -> None:
        """Put the handlers back; a program that is ending goes on to ignore what `train` has ignored."""
        for number, handler in self._before.items():
            if handler is not None and not (of_program and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, handler)


class _EndedBySignal(SystemExit):
    """Ends a command, which removes its temporary files, at a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def _handle(numbers: Sequence[signal.Signals], handler: Callable[[int, object], None]) -> None:
    """Handle signals that would end the program at once. Ctrl-C stays an interrupt."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, handler)


def _end_command(number: int, frame: object) -> None:
    for each in _ENDS:  # a second signal ends the program at once
        if signal.getsignal(each) is _end_command:
            signal.signal(each, signal.SIG_DFL)
    raise _EndedBySignal(number)


def _end_before_training(number: int, frame: object) -> None:
    """End with status 75 at a signal that comes during the imports or before the ranks have met.

    `train` sets its own handlers after that.
    """
    text = (
        f"hpcphotoz: {signal.Signals(number).name} received while nothing was in training: the same command "
    )
    with contextlib.suppress(OSError):  # a terminal that has gone
        os.write(2, f"{text}begins, or goes on\n".encode())
    os._exit(0 if under_torchrun() else os.EX_TEMPFAIL)  # torchrun takes any status but 0 for a failure


def _run(arguments: Sequence[str]) -> int:
    from hpcphotoz.cli import run
    from hpcphotoz.errors import BadInput

    try:
        return run(arguments)
    except BadInput as error:
        return _report_failure(f"error: {error}", 2)
    except _EndedBySignal:
        raise
    except SystemExit as end:  # help and version, or an error that another rank has reported
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _report_failure(text: str, status: int) -> int:
    output.say(f"hpcphotoz: {' '.join(text.split())}", sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
