"""How good the network is on the validation part, which the ranks that learn share."""

import torch
from torch import Tensor, nn

from hpcphotoz.data.device import on_device
from hpcphotoz.data.stream import Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training import group
from hpcphotoz.training.cast import Cast
from hpcphotoz.training.speed import Speed
from hpcphotoz.training.stop import StopRequest
from hpcphotoz.training.work import flux

_LOOK_EVERY = 16  # batches; a look is one small all-reduce


class Abandoned(Exception):
    """A learner was asked to stop: all learners left the validation unfinished."""


class Unreadable(Exception):
    """Some learner cannot read its share; `problem` says why this one cannot, if it is this one."""

    def __init__(self, problem: str | None) -> None:
        super().__init__(problem)
        self.problem = problem


@torch.no_grad()
def validate(
    module: nn.Module,
    stream: Stream,
    bins: RedshiftBins,
    cast: Cast,
    speed: Speed,
    device: torch.device,
    stop: StopRequest,
) -> dict[str, float]:
    """Bias, sigma_MAD and eta over all learners' shares, `n` objects and how many were skipped.

    Args:
        module: the bare network; in training mode after.
        stream: the validation part.
        bins: what logits mean.
        cast: the learners.
        speed: precision.
        device: where the network is.
        stop: looked at every 16 batches.

    Raises:
        Unreadable: on all learners, if one cannot read its share.
        Abandoned: on all learners, if one is asked to stop.
    """
    module.eval()
    try:
        rows = _predictions(module, stream, bins, cast, speed, device, stop)
    finally:
        module.train()
    found = group.collect(rows, cast.world, cast.among)
    z_phot, z_spec = found.cpu().double().numpy().T
    dz = (z_phot - z_spec) / (1 + z_spec)
    figures: dict[str, float] = {"n": len(dz), "skipped": stream.rows - len(dz)}
    if len(dz):
        for name, of in (("bias", metrics.bias), ("sigma_mad", metrics.sigma_mad), ("eta", metrics.eta)):
            figures[name] = float(of(dz))
    return figures


def _predictions(
    module: nn.Module,
    stream: Stream,
    bins: RedshiftBins,
    cast: Cast,
    speed: Speed,
    device: torch.device,
    stop: StopRequest,
) -> Tensor:
    """(n, 2) mean and spectroscopic redshifts of this rank's objects; arguments and errors as `validate`."""
    rows, problem = [torch.zeros(0, 2, device=device)], None
    batches = on_device(stream.epoch(0), device)
    for number in range(stream.batches):
        if number % _LOOK_EVERY == 0:
            flags = torch.tensor([float(bool(stop.reason)), float(problem is not None)], device=device)
            stops, problems = group.add_up(flags, cast.world, cast.among).tolist()
            if problems:
                break
            if stops:
                raise Abandoned
        if problem is not None:  # until the others look too
            continue
        try:
            batch = next(batches)
        except (BadInput, OSError) as error:
            problem = str(error)
            continue
        except StopIteration:
            problem = "the validation part has fewer objects than were counted: has the dataset changed?"
            continue
        with speed.autocast(device):
            logits: Tensor = module(flux(batch), batch.ebv)
        rows.append(torch.stack([bins.mean(logits), batch.z_spec], dim=1))
    else:
        next(batches, None)  # the end of the pass: the stream notes that all of it is verified
    if any(group.gather(problem, cast.world, cast.among)):
        raise Unreadable(problem)
    return torch.cat(rows)
