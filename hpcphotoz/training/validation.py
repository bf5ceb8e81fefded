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
from hpcphotoz.training.work import flux


class Unreadable(Exception):
    """Some learner cannot read its share; `problem` says why this one cannot, if it is this one."""

    def __init__(self, problem: str | None) -> None:
        super().__init__(problem)
        self.problem = problem


@torch.no_grad()
def validate(
    module: nn.Module, stream: Stream, bins: RedshiftBins, cast: Cast, speed: Speed, device: torch.device
) -> dict[str, float]:
    """Bias, sigma_MAD and eta over all learners' shares, `n` objects and how many were skipped.

    Args:
        module: the bare network; in training mode after.
        stream: the validation part.
        bins: what logits mean.
        cast: the learners.
        speed: precision.
        device: where the network is.

    Raises:
        Unreadable: on all learners, if one cannot read its share.
    """
    module.eval()
    rows, problem = [torch.zeros(0, 2, device=device)], None
    try:
        for batch in on_device(stream.epoch(0), device):
            with speed.autocast(device):
                logits: Tensor = module(flux(batch), batch.ebv)
            rows.append(torch.stack([bins.mean(logits), batch.z_spec], dim=1))
    except (BadInput, OSError) as error:
        problem = str(error)
    module.train()
    if any(group.gather(problem, cast.world, cast.among)):
        raise Unreadable(problem)
    found = group.collect(torch.cat(rows), cast.world, cast.among)
    z_phot, z_spec = found.cpu().double().numpy().T
    dz = (z_phot - z_spec) / (1 + z_spec)
    figures: dict[str, float] = {"n": len(dz), "skipped": stream.rows - len(dz)}
    if len(dz):
        for name, of in (("bias", metrics.bias), ("sigma_mad", metrics.sigma_mad), ("eta", metrics.eta)):
            figures[name] = float(of(dz))
    return figures
