"""Validation after each epoch: bias, sigma_MAD and outlier rate; the learners divide the objects."""

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
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.rank_batch import flux
from hpcphotoz.training.run.signals import StopRequest

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

    Args:
        components: the network, in training mode afterwards, and its options.
        stream, role: this rank's validation objects, and the ranks that take part.
        stop: read every 16 batches.

    Raises:
        ValidationEnded: on all learners, if one is asked to stop or cannot read its data.
    """
    components.module.eval()
    try:
        rows = _predictions(components, stream, role, stop)
    finally:
        components.module.train()
    found = group.gather_rows(rows, role.world, role.subgroup)
    z_phot, z_spec = found.cpu().double().numpy().T
    dz = (z_phot - z_spec) / (1 + z_spec)
    figures: dict[str, float] = {"n": len(dz), "skipped": stream.rows - len(dz)}
    if len(dz):
        for name, of in (("bias", metrics.bias), ("sigma_mad", metrics.sigma_mad), ("eta", metrics.eta)):
            figures[name] = float(of(dz))
    return figures


def _predictions(
    components: TrainingComponents, stream: Stream | ChainedStream, role: RankRole, stop: StopRequest
) -> Tensor:
    """(n, 2) mean and spectroscopic redshifts of this rank's objects; arguments and errors as `validate`."""
    device, problem = components.device, None
    rows = [torch.zeros(0, 2, device=device)]
    batches = prefetch_to_device(stream.epoch(0), device)
    for number in range(stream.batches):
        if number % _CHECK_STOP_EVERY == 0:
            flags = torch.tensor([float(bool(stop.reason)), float(problem is not None)], device=device)
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
        with components.compute.autocast(device):
            logits: Tensor = components.module(flux(batch), batch.ebv)
        rows.append(torch.stack([components.bins.mean(logits), batch.z_spec], dim=1))
    else:
        next(batches, None)  # ends the epoch: the stream records that every object is verified
    if any(group.gather_texts(problem, role.world, role.subgroup)):
        raise ValidationEnded(Verdict.PROBLEM, problem)
    return torch.cat(rows)
