"""Connects the ranks of a launcher for the commands that share their work; one of the ranks prints."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from hpcphotoz import world
from hpcphotoz.node.prepare import prepare_rank
from hpcphotoz.ranks import ALONE, Ranks, connecting


@contextmanager
def sharing_ranks(words: Sequence[str], out: Path) -> Iterator[Ranks]:
    """Context with the ranks of this process's launcher; MPI connects those of an MPI launcher, gloo others.

    Ranks other than 0 print nothing. If a rank fails, all end: rank 0 tells why, once.

    Args:
        words: the command line, the same on all ranks.
        out: the output that it names.

    Raises:
        BadInput: the ranks cannot connect, or a rank's own problem.
        SystemExit: on a rank whose problem another reports; without a message.
    """
    place = world.detect()
    prepare_rank(place)  # before torch is imported
    with ExitStack() as stack:
        if place.launcher in world.MPI:
            from hpcphotoz.sources.mpi import mpi_ranks

            ranks = mpi_ranks()
        elif place.size > 1:
            from hpcphotoz.training.distributed.communicator import gloo_ranks

            options = {"--out": repr(str(out.absolute())), "the command line": shlex.join(words)}
            ranks = stack.enter_context(gloo_ranks(place, options))
        else:
            yield ALONE
            return
        stack.enter_context(connecting(ranks))
        stack.enter_context(ranks.failing_together())
        if ranks.rank:
            nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
        yield ranks
