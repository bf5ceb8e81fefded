"""How much trained networks lose when their images are attacked, as a function of epsilon.

The attacks are white-box: each network is attacked through its own gradients. At the headline epsilon the
images made against one network are also shown to the others (transfer). Images are streamed; what is kept is
a few numbers per object and condition, and the pictures of one galaxy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.attacks.precision import tf32
from hpcphotoz.config import GREATEST
from hpcphotoz.data.shards import Manifest, Stamps, read_manifest
from hpcphotoz.data.subset import EVERYTHING, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.compute import PASSES, DatasetAttack, DatasetForward
from hpcphotoz.evaluation.labels import check_redshifts, labels
from hpcphotoz.evaluation.least import least_eps
from hpcphotoz.evaluation.methods import Planned, headline, planned
from hpcphotoz.evaluation.network import Network, batches, check_fits, pdfs, tensors
from hpcphotoz.evaluation.result import Example, Floats, LeastEps, NetworkResult, Result
from hpcphotoz.evaluation.tally import Tally, network_result


def evaluate(
    networks: Sequence[Network],
    data: Path,
    *,
    eps: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.5),
    methods: Sequence[str] = ("fgsm", "pgd"),
    steps: int = 10,
    restarts: int = 1,
    batch: int = 128,
    loss: str = "cross_entropy",
    headline_eps: float = 0.1,
    minimal_max: float | None = None,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    seed: int = 0,
    precision: str = "fp32",
    subset: Subset = EVERYTHING,
) -> Result:
    """Measure every network on a dataset, clean and attacked.

    Objects of unknown z_spec are attacked away from the network's own clean prediction (see `labels`), count
    in the change of <z>, and are left out of the metrics.

    Args:
        networks: what to measure; names must differ, all in the dataset's bands.
        data: dataset folder.
        eps: in sky sigmas of each band: the greatest change of a pixel, of "l2" the root mean square; 0 is
            dropped (it is the clean condition).
        methods: names in `methods.METHODS`; which of them pictures and transfer show, `methods.headline`
            says.
        steps: of all methods but FGSM, from a random start; PGD's each of 2.5 eps / steps.
        restarts: random starts of the same methods, of which the best is kept.
        batch: objects at a time.
        loss: what the attack raises: "cross_entropy", "margin", "shift" or "crps".
        headline_eps: the epsilon of summary, pictures and transfer; measured even if not in `eps`.
        minimal_max: also search for the least epsilon that makes each galaxy an outlier, up to so many sky
            sigmas; None: do not.
        device: where the networks are and the attacks run.
        limit: only the first so many objects.
        seed: key of the random starts.
        precision: of the attacks' gradients: "fp32", "tf32" or "bf16"; bf16 was as strong where it was
            compared. What is measured on the attacked images is always float32 without TF32, and so is the
            search for the least epsilon.
        subset: which objects of the dataset.

    Raises:
        BadInput: no network, two of one name, other bands or stamp size than the dataset, a z_spec outside a
            network's bins, no object meant, an output that is not finite, an unknown method, or an option out
            of range.
    """
    manifest = read_manifest(data)
    _check(networks, data, manifest, batch, limit, subset, precision, minimal_max)
    plan = planned(methods, eps, headline_eps, steps=steps, restarts=restarts, loss=loss)
    pictured = headline(methods), headline_eps
    objects = min(limit or manifest.rows, manifest.rows)
    gradients = objects * sum(attack.steps * attack.restarts for _, attack in plan)
    forwards = objects * (len(plan) + len(networks))  # clean, each attack, the images of the others
    taken = [
        _Taken(
            one,
            plan,
            DatasetAttack(one, precision, batch, gradients),
            DatasetForward(one, batch, forwards),
        )
        for one in networks
    ]
    crossed = {source.name: {t.name: Tally() for t in networks if t is not source} for source in networks}
    object_id, z_spec, example = [], [], None
    for stamps in batches(data, manifest, batch, "attacking galaxies", limit, subset):
        tensor = tensors(stamps, device)
        shown = {one.network.name: one.attack(tensor, stamps.z_spec, pictured, seed) for one in taken}
        if minimal_max is not None:
            for one in taken:
                with tf32(False):
                    one.least.append(least_eps(one.network, tensor, minimal_max, steps=steps, seed=seed))
        for source, targets in crossed.items():
            for target in (one for one in taken if one.network.name in targets):
                pdf = target.pdfs(tensor, shown[source].attacked)
                targets[target.network.name].add(target.network, pdf, stamps.z_spec)
        example = example or _example(networks, stamps, shown)
        object_id.append(stamps.object_id)
        z_spec.append(stamps.z_spec)
    assert example is not None  # a dataset without objects was refused
    truth = np.concatenate(z_spec)
    return Result(
        data=data,
        header=manifest.header,
        object_id=np.concatenate(object_id),
        z_spec=truth,
        methods=tuple(dict.fromkeys(name for name, _ in plan)),
        eps=tuple(sorted({attack.eps for _, attack in plan})),
        headline_eps=headline_eps,
        steps=steps,
        restarts=restarts,
        loss=loss,
        seed=seed,
        precision=precision,
        networks=tuple(one.result(truth, minimal_max) for one in taken),
        transfer={s: {t: tally.metrics(truth) for t, tally in ts.items()} for s, ts in crossed.items() if ts},
        example=example,
        subset=subset,
        limit=limit,
    )


@dataclass(frozen=True)
class _Shown:
    attacked: Tensor
    pdf_clean: Tensor
    pdf_attacked: Tensor


class _Taken:
    """What is taken down of one network while batches go by."""

    def __init__(
        self, network: Network, plan: list[Planned], attacked: DatasetAttack, forward: DatasetForward
    ) -> None:
        self.network, self._plan, self._attacked, self._forward = network, plan, attacked, forward
        self._tallies = [Tally() for _ in range(1 + len(plan))]  # clean first
        self.least: list[Floats] = []

    def attack(
        self,
        tensor: dict[str, Tensor],
        z_spec: Floats,
        pictured: tuple[str, float],
        seed: int,
    ) -> _Shown:
        """Every condition of one batch; returns what the attack `pictured`, (method, epsilon), made."""
        network, shown = self.network, None
        clean = self.pdfs(tensor, tensor["images"])
        self._tallies[0].add(network, clean, z_spec)
        z = labels(network.bins, clean, tensor["z_spec"])
        for tally, (name, attack) in zip(self._tallies[1:], self._plan, strict=True):
            attacked = self._attacked(tensor, z, attack, seed)
            pdf = self.pdfs(tensor, attacked)
            tally.add(network, pdf, z_spec)
            if (name, attack.eps) == pictured:
                shown = _Shown(attacked, clean, pdf)
        assert shown is not None  # the headline epsilon is always among those measured
        return shown

    def pdfs(self, tensor: dict[str, Tensor], images: Tensor) -> Tensor:
        """The network's PDFs of some images of the batch."""
        return pdfs(self.network, images, tensor["ebv"], tensor["object_id"], self._forward)

    def result(self, z_spec: Floats, greatest: float | None) -> NetworkResult:
        minimal = None if greatest is None else LeastEps(np.concatenate(self.least), greatest)
        return network_result(self.network, self._tallies, self._plan, z_spec, minimal)


def _example(networks: Sequence[Network], stamps: Stamps, shown: dict[str, _Shown]) -> Example:
    """A typical galaxy: the headline attack moves its <z>, by the first network, by the median amount."""
    first, known = networks[0], np.isfinite(stamps.z_spec)
    change = shown[first.name].pdf_attacked - shown[first.name].pdf_clean
    moved = first.bins.integral(change).abs().cpu().numpy()
    among = np.flatnonzero(known) if known.any() else np.arange(len(stamps))
    i = among[np.argsort(moved[among])[len(among) // 2]]
    return Example(
        object_id=int(stamps.object_id[i]),
        z_spec=float(stamps.z_spec[i]),
        image=stamps.images[i].copy(),
        sky_sigma=stamps.sky_sigma[i].copy(),
        attacked={name: one.attacked[i].cpu().numpy().copy() for name, one in shown.items()},
        pdf_clean={name: one.pdf_clean[i].cpu().numpy().copy() for name, one in shown.items()},
        pdf_attacked={name: one.pdf_attacked[i].cpu().numpy().copy() for name, one in shown.items()},
    )


def _check(
    networks: Sequence[Network],
    data: Path,
    manifest: Manifest,
    batch: int,
    limit: int | None,
    subset: Subset,
    precision: str,
    minimal_max: float | None,
) -> None:
    names = [network.name for network in networks]
    if not names:
        raise BadInput("no network to evaluate: give at least one run folder")
    if len(set(names)) < len(names):
        raise BadInput(
            f"two runs are called '{max(names, key=names.count)}': rename one folder to tell them apart"
        )
    if batch < 1 or (limit is not None and limit < 1):
        raise BadInput(f"batch {batch} and limit {limit}: must be at least 1")
    if precision not in PASSES:
        raise BadInput(f"precision '{precision}': want one of {', '.join(PASSES)}")
    if minimal_max is not None and not 0 < minimal_max <= GREATEST:
        raise BadInput(
            f"greatest epsilon {minimal_max} of the least ones: must be above 0 and at most {GREATEST:g} sky "
            "sigmas"
        )
    for network in networks:
        check_fits(network, manifest.header, data)
        check_redshifts(network.bins, data, manifest, f"run '{network.name}'", subset)
