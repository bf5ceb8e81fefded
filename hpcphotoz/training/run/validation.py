"""Validation after each epoch, clean and under attack: bias, sigma_MAD, outlier rate; learners share it."""

import torch
from torch import Tensor

from hpcphotoz.data.stream.chained import ChainedStream
from hpcphotoz.data.stream.device import prefetch_to_device
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.agreement import Verdict
from hpcphotoz.training.optimisation.attacked_subset import AttackedSubset
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.rank_batch import flux
from hpcphotoz.training.run.signals import StopRequest
from hpcphotoz.training.run.timers import AGREEMENT

_CHECK_STOP_EVERY = 16  # batches; a check is one small all-reduce


class ValidationEnded(Exception):
    """All learners leave the validation: one is asked to stop, or cannot read its data (`problem`, on it)."""

    def __init__(self, verdict: Verdict, problem: str | None = None) -> None:
        super().__init__(problem)
        self.verdict, self.problem = verdict, problem


@torch.no_grad()
def validate(
    components: TrainingComponents, stream: Stream | ChainedStream, role: RankRole, stop: StopRequest
) -> dict[str, float]:
    """Bias, sigma_MAD and eta over the objects of all learners, their number `n`, and the skipped ones.

    If objects are attacked (`adversarial.validation_objects`), the same figures of these objects under
    attack, and their number, under names that end in _adversarial.

    Args:
        components: the network, in training mode afterwards, and its options. Its averaged weights are used
            if it has them.
        stream, role: this rank's validation objects, and the ranks that take part.
        stop: read every 16 batches.

    Raises:
        ValidationEnded: on all learners, if one is asked to stop or cannot read its data.
    """
    attacked = AttackedSubset.of(components, stream.rows, role.world.size)
    with components.evaluating():
        clean = _predictions(components, stream, role, stop, attacked)
        under_attack = attacked.predictions() if attacked else None
    n, found = _figures(clean, role)
    figures: dict[str, float] = {"n": n, "skipped": stream.rows - n, **found}
    if under_attack is not None:
        n, found = _figures(under_attack, role)
        figures["n_adversarial"] = n
        figures |= {f"{name}_adversarial": value for name, value in found.items()}
    return figures


def _figures(rows: Tensor, role: RankRole) -> tuple[int, dict[str, float]]:
    """Number of objects of all learners and their figures, from the (n, 2) <z> and z_spec of this one."""
    found = group.gather_rows(rows, role.world, role.subgroup)
    z_phot, z_spec = found.cpu().double().numpy().T
    dz = (z_phot - z_spec) / (1 + z_spec)
    of = {"bias": metrics.bias, "sigma_mad": metrics.sigma_mad, "eta": metrics.eta}
    return len(dz), {name: float(figure(dz)) for name, figure in of.items()} if len(dz) else {}


def _predictions(
    components: TrainingComponents,
    stream: Stream | ChainedStream,
    role: RankRole,
    stop: StopRequest,
    attacked: AttackedSubset | None,
) -> Tensor:
    """(n, 2) mean and spectroscopic redshifts of this rank's objects; arguments and errors as `validate`."""
    device, problem = components.device, None
    rows = [torch.zeros(0, 2, device=device)]
    batches = prefetch_to_device(stream.epoch(0), device)
    for number in range(stream.batches):
        if number % _CHECK_STOP_EVERY == 0:
            flags = torch.tensor([float(bool(stop.reason)), float(problem is not None)], device=device)
            with components.timers(AGREEMENT):
                stops, problems = group.sum_over_ranks(flags, role.world, role.subgroup).tolist()
            if problems:
                break
            if stops:
                raise ValidationEnded(Verdict.STOP)
        if problem is not None:  # wait for the next check, in which all ranks take part
            continue
        try:
            batch = next(batches)
        except (BadInput, OSError) as error:
            problem = str(error)
            continue
        except StopIteration:
            problem = "the validation part has fewer objects than were counted: has the dataset changed?"
            continue
        images = flux(batch, components.config.model)
        with components.compute.autocast(device):
            logits: Tensor = components.module(images, batch.ebv)
        rows.append(torch.stack([components.bins.mean(logits), batch.z_spec], dim=1))
        if attacked:
            attacked.add(batch, images)
    else:
        next(batches, None)  # ends the epoch: the stream records that every object is verified
    if any(group.gather_texts(problem, role.world, role.subgroup)):
        raise ValidationEnded(Verdict.PROBLEM, problem)
    return torch.cat(rows)
