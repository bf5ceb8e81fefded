"""The report of a rehearsal as lines of text: what does not fit first."""

from collections.abc import Iterator

import numpy as np

from hpcphotoz.output import number_of
from hpcphotoz.training.rehearsal.plan import RolePlan, RunPlan
from hpcphotoz.training.rehearsal.problems import notes, problems
from hpcphotoz.training.rehearsal.rehearse import Rehearsal

_LEFT_OUT = (
    "the other ranks and their GPUs, the network between them and the time of collectives and messages, "
    "validation, saving"
)
_WIDTH = 13


def report_lines(found: Rehearsal) -> list[str]:
    """The report, line by line."""
    wrong = problems(found)
    said = f"{number_of(len(wrong), 'problem')}:" if wrong else "no problem found"
    who = f"{found.ranks.size:,} rank{'s' * (found.ranks.size != 1)}"
    if found.start >= found.last_step:
        return [
            f"rehearsal of {who}: the run is finished at step {found.start:,}: there is nothing to rehearse"
        ]
    lines = [f"rehearsal of {who}, steps as rank {found.ranks.rank}: {said}"]
    lines += [f"  {number}. {text}" for number, text in enumerate(wrong, 1)]
    lines += [f"{'note':{_WIDTH}} {text}" for text in notes(found)]
    for name, text in _facts(found):
        lines.append(f"{name:{_WIDTH}} {text}")
    return lines


def _facts(found: Rehearsal) -> Iterator[tuple[str, str]]:
    yield "run", _run(found)
    if plan := found.plan:
        yield "order", _order(plan)
        yield from _roles(found, plan)
        for role in plan.roles:
            yield "objects", _objects(role)
        for role in plan.roles:
            yield "reads", _reads(role)
        yield from _messages(found, plan)
        for role in plan.roles:
            yield "memory", _memory(found, role)
    yield "checkpoint", f"{_size(found.checkpoint_bytes)}, of rank 0 alone"
    if plan:
        yield from _cost(found, plan)
    yield "not rehearsed", _LEFT_OUT if plan else f"steps, objects, reads, memory, {_LEFT_OUT}"


def _run(found: Rehearsal) -> str:
    stream, config = found.loader.train, found.components.config
    text = (
        f"{stream.rows:,} objects to train on, {number_of(stream.batches, 'step')} of up to "
        f"{stream.batch_size(0):,} objects an epoch, {number_of(found.last_step, 'step')} in all"
    )
    if found.start:
        text += f"; the real run goes on from step {found.start:,}"
    attack = config.adversarial
    ups = [("learning rate", config.optimiser.warmup_steps), ("attack", attack.warmup_end)]
    warm = [f"the {name} warms up over {steps:,} steps" for name, steps in ups if steps]
    return "; ".join([text, *warm])


def _order(plan: RunPlan) -> str:
    order = plan.order
    if order.problem:
        return order.problem
    which = "the whole epoch" if order.whole else f"the first {order.steps:,} steps of the epoch"
    return f"every object comes once, on one rank: checked for {order.objects:,} objects, {which}"


def _roles(found: Rehearsal, plan: RunPlan) -> Iterator[tuple[str, str]]:
    split = plan.split
    if split is None:
        mode = found.components.config.overlap.mode
        yield "roles", f"every rank attacks and trains (overlap.mode {mode}); one process group"
        return
    measured = ", by the costs measured on this rank" * (found.components.config.overlap.attackers == "auto")
    first = ", ".join(map(str, split.attacker_ranks[:5])) + ", ..." * (split.attackers > 5)
    numbers, learners = "rank" + "s" * (split.attackers != 1), split.size - split.attackers
    yield (
        "roles",
        f"{number_of(split.attackers, 'attacker')} ({numbers} {first}) and {number_of(learners, 'learner')}"
        f"{measured}; process groups: all, the learners, rank 0 with the attackers",
    )


def _objects(role: RolePlan) -> str:
    division = role.division
    attacked, last = _range(division.attacked), role.last
    text = f"{_range(division.objects)} for {role.one} in a step, {attacked} of them attacked"
    if last.objects.sum() != division.objects.sum():
        text += f"; in the last of an epoch {_range(last.objects)}, {_range(last.attacked)} attacked"
    return text


def _reads(role: RolePlan) -> str:
    reads, count = role.reads, len(role.ranks)
    runs = reads.runs / reads.steps
    total = float(reads.rows.sum()) * reads.row_bytes / reads.steps
    return (
        f"means of {number_of(reads.steps, 'step')}: the busiest {role.name} {_size(reads.bytes_per_step)} a "
        f"step, in {runs.max():.1f} reads of {reads.rows_per_run:.1f} neighbouring rows, from at most "
        f"{number_of(int(reads.files.max()), 'file')}" + f"; all {count:,} {_size(total)}" * (count > 1)
    )


def _messages(found: Rehearsal, plan: RunPlan) -> Iterator[tuple[str, str]]:
    learners = len(plan.roles[0].ranks)
    gradients = sum(p.nbytes for p in found.components.module.parameters() if p.requires_grad)
    ring = 2 * gradients * (learners - 1) / learners
    updates = found.components.config.attack.steps
    often = f", {updates} times" if found.components.config.adversarial.objective == "free" else ""
    if learners > 1:
        yield (
            "all-reduce",
            f"{_size(gradients)} of gradients a step{often}: a ring sends {_size(ring)} a rank",
        )
    if plan.messages is None or plan.split is None:
        return
    sent, received = plan.messages.most(0), plan.messages.most(1)
    total = _size(sum(plan.messages.bytes.values()))
    agree = "the two ends differ" if plan.messages.problems else "both ends agree"
    yield (
        "messages",
        f"{len(plan.messages.bytes):,} a step, {total}: up to {sent[0]} ({_size(sent[1])}) from an attacker "
        f"and {received[0]} ({_size(received[1])}) to a learner; {agree}",
    )
    weights = _size(plan.weights_bytes)
    yield "weights", f"{weights} a step from rank 0 to {number_of(plan.split.attackers, 'attacker')}"


def _memory(found: Rehearsal, role: RolePlan) -> str:
    parts = ", ".join(f"{name} {_size(size)}" for name, size in role.memory.on_device.items())
    on_gpu = found.components.device.type == "cuda"
    text = f"{role.one} {_size(role.memory.device_total)}: {parts}"
    if on_gpu:
        text += f"; on the host {_size(role.memory.host_total)}"
    if found.steps and found.steps.role.name == role.name:
        where = "of the GPU" if on_gpu else "of this process, Python and torch included"
        text += f"; measured as rank {found.ranks.rank}: {_size(found.peak_bytes)} {where} at its peak"
    return text


def _cost(found: Rehearsal, plan: RunPlan) -> Iterator[tuple[str, str]]:
    for role in plan.roles:
        low, high = role.operations.min() / 1e9, role.operations.max() / 1e9
        span = f"{high:,.3g}" if low == high else f"{low:,.3g} to {high:,.3g}"
        yield "cost", f"{span} GFLOP a step for {role.one}"
    steps = found.steps
    if steps is None or not steps.seconds:
        return
    if not any(objects for objects, _ in steps.batches):
        yield "time", f"rank {found.ranks.rank} has no objects in these steps: choose another, as in N:R"
        return
    took = " and ".join(f"{s:.2f} s" for s in steps.seconds)
    device = "this GPU" if found.components.device.type == "cuda" else "this machine's CPU"
    text = f"steps of rank {found.ranks.rank} on {device}: {took}, of which {steps.waited_s:.2f} s "
    text += "waiting for data"
    own = next(role for role in plan.roles if found.ranks.rank in role.ranks)
    mine = own.operations[own.ranks.index(found.ranks.rank)]
    if mine:
        slowest = steps.seconds[-1] * float(own.operations.max() / mine)
        epoch = slowest * found.loader.train.batches
        text += f"; at the speed of the last, the busiest {own.name} takes {slowest:.2f} s a step, "
        text += f"{_time(epoch)} an epoch"
    yield "time", text
    for outcome in steps.outcomes:
        clean, n, adv, m = outcome.sums[:4].tolist()
        means = [
            f"{name} {total / k:.4f}" for name, total, k in (("clean", clean, n), ("attacked", adv, m)) if k
        ]
        if means:
            yield "loss", f"step {outcome.step}: {', '.join(means)} (of rank {found.ranks.rank} alone)"


def _range(values: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _size(size: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def _time(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
