"""Interrupts a call at any of its lines, as the handler of a signal does."""

import contextlib
import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hpcphotoz import atomic


def interrupted(
    line: int,
    call: Callable[[], object],
    interrupt: Callable[[], object] | None = None,
    modules: tuple[Any, ...] = (atomic, contextlib),
) -> bool:
    """Make a call and interrupt it at one of the lines that it passes in `modules`.

    Lines are counted from 0, from the first one in the module `atomic` on.

    Returns whether it was interrupted: False if it passes fewer lines.

    Args:
        line: where.
        call: what to call.
        interrupt: raises the error, or sends the signal; by default KeyboardInterrupt is raised.
        modules: those whose lines count.
    """
    files = {module.__file__ for module in modules}
    passed = -1

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and (passed >= 0 or frame.f_code.co_filename == atomic.__file__):
            passed += 1
            if passed == line:
                sys.settrace(None)
                if interrupt is None:
                    raise KeyboardInterrupt
                interrupt()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    gc.collect()
    return passed >= line
