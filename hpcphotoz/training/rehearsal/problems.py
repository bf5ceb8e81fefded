"""What of a rehearsed run does not fit or agree, each with what to do."""

import math

from hpcphotoz.output import number_of
from hpcphotoz.training.rehearsal.plan import RolePlan, RunPlan
from hpcphotoz.training.rehearsal.rehearse import Rehearsal

_UNEVEN = 2.0  # ratio of what ranks of two roles compute, from which it is worth a note
_SHORT_RUN = 1 << 18  # bytes: shorter reads are far below the speed of a parallel file system


def problems(found: Rehearsal) -> list[str]:
    """One line for each problem; empty: all fits and agrees."""
    lines = [found.refused] if found.refused else []
    if found.steps and found.steps.problem:
        lines.append(found.steps.problem)
    lines += _not_finite(found)
    if plan := found.plan:
        for role in plan.roles:
            lines += _of_division(found, role)
        if plan.order.problem:
            lines.append(f"the order of the objects: {plan.order.problem}: report it")
        if plan.messages:
            lines += [f"messages: {text}: report it" for text in plan.messages.problems[:5]]
        lines += _of_blocks(found, plan)
        lines += _of_memory(found, plan)
    return lines


def notes(found: Rehearsal) -> list[str]:
    """What is worth knowing though it does not prevent the run."""
    lines = []
    plan, data = found.plan, found.components.config.data
    for role in plan.roles if plan else ():
        reads, division = role.reads, role.division
        most, least = int(division.objects.max()), int(division.objects.min())
        if plan and not plan.split and least and most - least > 0.1 * least:
            lines.append(
                f"{role.name}s have {least} to {most} objects in a step, and all wait for the slowest: make "
                f"run.global_batch a multiple of {len(role.ranks)}"
            )
        run = reads.rows_per_run * reads.row_bytes
        if not found.start and run < _SHORT_RUN and reads.rows_per_run < data.block_rows / 2:
            lines.append(
                f"{role.one} reads {reads.rows_per_run:.1f} rows ({run / 1e3:.0f} kB) at a time: raise "
                "data.window_blocks for longer reads (it changes the order of the objects)"
            )
        if role.last.idle and not division.idle:
            lines.append(
                f"{number_of(role.last.idle, role.name)} of {len(role.ranks)} have no objects in the last "
                f"global batch of an epoch, of {int(role.last.objects.sum())} objects"
            )
    if plan and plan.split and (uneven := _uneven_roles(plan)):
        lines.append(uneven)
    validation = found.loader.validation
    if validation is not None and validation.rows < found.ranks.size:
        lines.append(
            f"{validation.rows} validation objects on {found.ranks.size} ranks: some have none, and wait"
        )
    return lines


def _uneven_roles(plan: RunPlan) -> str:
    """Whether the ranks of one role wait for those of the other, which have much more to compute."""
    learner, attacker = (float(role.operations.max()) for role in plan.roles)
    if min(learner, attacker) <= 0 or max(learner, attacker) < _UNEVEN * min(learner, attacker):
        return ""
    much, advice = ("an attacker", "more") if attacker > learner else ("a learner", "fewer")
    ratio = max(learner, attacker) / min(learner, attacker)
    other = "learners" if attacker > learner else "attackers"
    return (
        f"{much} computes {ratio:.0f} times as much in a step as the {other}, which wait: take {advice} "
        "attackers"
    )


def _of_division(found: Rehearsal, role: RolePlan) -> list[str]:
    division, count = role.division, len(role.ranks)
    size, fraction = int(division.objects.sum()), found.components.config.adversarial.fraction
    enough = count * math.ceil(1 / fraction) if fraction and role.name != "learner" else count
    rows = found.loader.train.rows
    add = f"add objects (the training part holds {rows})"  # no global batch is larger
    if idle := division.idle:
        attacked = f" ({enough} for an attacked object each)" if count < enough <= rows else ""
        more = f"raise run.global_batch to {count} or more{attacked}"
        more = more if rows >= count else f"{add} and {more}" if size < rows else add
        fewer = f"start at most {size} ranks" if role.name == "rank" else "start fewer ranks"
        return [
            f"global batches of {size} objects on {count} {role.name}s: {idle} of them have no objects in a "
            f"step: {more}, or {fewer}"
        ]
    if (without := division.without_attack) and role.name != "learner":
        more = f"raise run.global_batch to {enough} or more"
        more = more if rows >= enough else f"{add} and {more}" if size < rows else add
        return [
            f"adversarial.fraction {fraction:g} of run.global_batch {size}: {without} of {count} "
            f"{role.name}s have objects but no attacked one, and wait for the others: "
            f"{more}, or start fewer ranks"
        ]
    return []


def _of_blocks(found: Rehearsal, plan: RunPlan) -> list[str]:
    most = max(len(role.ranks) for role in plan.roles)
    if plan.blocks >= most:
        return []
    rows = found.components.config.data.block_rows
    return [
        f"{number_of(plan.blocks, 'block')} of data.block_rows {rows} for {most} ranks: several ranks read "
        "parts of each block: lower data.block_rows, or start fewer ranks"
    ]


def _of_memory(found: Rehearsal, plan: RunPlan) -> list[str]:
    lines, device = [], found.components.device.type
    what = "GPU" if device == "cuda" else "machine"
    for role in plan.roles:
        if role.memory.device_total > found.available_bytes:
            lines.append(
                f"{role.one} wants {role.memory.device_total / 1e9:.1f} GB, and this {what} has "
                f"{found.available_bytes / 1e9:.1f}: set compute.micro_batch, or start more ranks"
            )
    return lines


def _not_finite(found: Rehearsal) -> list[str]:
    steps = [each.step for each in found.steps.outcomes if each.skipped] if found.steps else []
    return [
        f"step {step}: the loss or gradient of rank {found.ranks.rank} is not finite: training would skip "
        "it: look at the data (hpcphotoz inspect --verify) and at optimiser.learning_rate"
        for step in steps
    ]
