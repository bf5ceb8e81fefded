"""The plan of a chaos test: which faults strike when, drawn from a seed alone."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

KILL, NODE, PAUSE, HANG, FULL_DISK = "kill", "kill all", "pause", "hang", "full disk"
STEP, SAVE, VALIDATION, START, MEETING = "step", "save", "validation", "start", "meeting"

# Of the full test: how often each kind of fault strikes, and when. A start that loses one rank before the
# ranks have met makes the others wait for the whole run.timeout_s: few of these.
_FULL = [
    *[(KILL, STEP)] * 24,
    *[(KILL, SAVE)] * 14,
    *[(KILL, VALIDATION)] * 6,
    *[(KILL, MEETING)] * 3,
    *[(KILL, START)] * 3,
    *[(NODE, STEP)] * 2,
    *[(NODE, SAVE)] * 2,
    *[(PAUSE, STEP)] * 3,
    *[(PAUSE, SAVE)] * 1,
    *[(HANG, STEP)] * 3,
    *[(HANG, SAVE)] * 1,
    *[(FULL_DISK, STEP)] * 4,
]
_QUICK = [
    *[(KILL, STEP), (KILL, SAVE), (KILL, VALIDATION), (NODE, STEP)],
    *[(PAUSE, STEP), (HANG, STEP), (FULL_DISK, STEP)],
]
_TORN = {False: 4, True: 1}  # kills after which the newest checkpoint is damaged; by `quick`


@dataclass(frozen=True)
class Layout:
    """Number of ranks of a start, and its overlap mode."""

    world_size: int
    mode: str
    attackers: int | None = None  # mode ranks

    @property
    def words(self) -> list[str]:
        """Its options on a command line."""
        words = ["--overlap.mode", self.mode]
        return words if self.attackers is None else [*words, "--overlap.attackers", str(self.attackers)]


@dataclass(frozen=True)
class Fault:
    """One fault. It strikes the start that is running, or one that is started for it with `layout`."""

    kind: str
    when: str
    step: int  # not before the run has begun this step
    rank: float  # in [0, 1): which of the ranks
    delay: float  # in [0, 1): when, after the moment that is waited for; see `strike.strike`
    layout: Layout
    torn: bool = False  # the newest checkpoint is damaged afterwards

    def __str__(self) -> str:
        layout = self.layout
        ranks = f"{layout.world_size} rank{'s' * (layout.world_size > 1)}"
        attackers = f", {layout.attackers} of them attackers" if layout.attackers else ""
        torn = ", then the newest checkpoint damaged" if self.torn else ""
        where = f"{ranks}, overlap {layout.mode}{attackers}"
        return f"{self.kind} at {self.when} from step {self.step} on ({where}){torn}"

    def rank_of(self, world_size: int) -> int:
        """The rank that it strikes. Saves are struck on rank 0, which makes them, in two cases of three."""
        if self.when == SAVE and self.rank < 2 / 3:
            return 0
        return int(self.rank * world_size)


def draw(seed: int, steps: int, quick: bool) -> list[Fault]:
    """The faults in their order, spread over the steps of the run.

    Args:
        seed: the only source of chance.
        steps: of the run.
        quick: the short form.
    """
    chance = random.Random(seed)
    kinds = _in_order(_QUICK if quick else _FULL, chance)
    # Faults of late steps may come late: what is left after the last one is a run without faults.
    at = sorted(chance.randrange(1, steps * 9 // 10) for _ in kinds)
    # A checkpoint is damaged where the one before it is there too: not at the beginning.
    can_tear = [k for k, (kind, _) in enumerate(kinds) if kind in (KILL, NODE) and at[k] > steps // 5]
    torn = chance.sample(can_tear, min(_TORN[quick], len(can_tear)))
    together = [kind in (PAUSE, HANG) or when == MEETING for kind, when in kinds]  # want another rank
    layouts = _layouts(chance, [2 if each else 1 for each in together])
    return [
        Fault(kind, when, at[k], chance.random(), chance.random(), layouts[k], k in torn)
        for k, (kind, when) in enumerate(kinds)
    ]


def _in_order(kinds: Sequence[tuple[str, str]], chance: random.Random) -> list[tuple[str, str]]:
    """Shuffled; each pause, which a start survives, goes before a fault that strikes any running start."""
    order = [kind for kind in kinds if kind[0] is not PAUSE]
    chance.shuffle(order)
    for pause in (kind for kind in kinds if kind[0] is PAUSE):
        places = [k for k, (kind, when) in enumerate(order) if kind == KILL and when not in (START, MEETING)]
        order.insert(chance.choice(places), pause)
    return order


def _layouts(chance: random.Random, leasts: Sequence[int]) -> list[Layout]:
    """A layout of each start, of at least so many ranks and at most 4; the overlap modes take turns.

    Two ranks in half of the cases, because more take longer to start. One rank cannot attack for others.
    """
    modes = itertools.cycle(chance.sample(("off", "streams", "ranks"), 3))
    layouts = []
    for least in leasts:
        size, mode = chance.choice([n for n in (1, 1, 2, 2, 2, 2, 3, 4) if n >= least]), next(modes)
        if mode == "ranks" and size == 1:
            size = 2
        layouts.append(Layout(size, mode, chance.randrange(1, size) if mode == "ranks" else None))
    return layouts
