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

from hpcphotoz.attacks import perturb
from hpcphotoz.config import Attack, parse
from hpcphotoz.data.shards import Manifest, Stamps, open_shard, read_manifest, readable
from hpcphotoz.data.subset import EVERYTHING, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.network import Network, batches, check_fits, edges, pdfs, tensors
from hpcphotoz.evaluation.result import CLEAN, Condition, Example, Floats, NetworkResult, Result
from hpcphotoz.models.bins import RedshiftBins

METHODS = ("fgsm", "pgd")


def evaluate(
    networks: Sequence[Network],
    data: Path,
    *,
    eps: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.5),
    methods: Sequence[str] = METHODS,
    steps: int = 10,
    batch: int = 128,
    loss: str = "cross_entropy",
    headline_eps: float = 0.1,
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
        eps: L-infinity radii in sky sigmas of each band; 0 is dropped (it is the clean condition).
        methods: "fgsm", "pgd" or both.
        steps: PGD steps, each of 2.5 eps / steps, from a random start.
        batch: objects at a time.
        loss: what the attack raises, "cross_entropy" or "shift".
        headline_eps: the epsilon of summary, pictures and transfer; measured even if not in `eps`.
        device: where the networks are and the attacks run.
        limit: only the first so many objects.
        seed: key of the random starts.
        precision: "bf16" computes the attacks' gradients under autocast: faster, and as strong where it was
            compared. What is measured on the attacked images is always float32.
        subset: which objects of the dataset.

    Raises:
        BadInput: no network, two of one name, other bands or stamp size than the dataset, a z_spec outside a
            network's bins, no object meant, an output that is not finite, an unknown method, or an option out
            of range.
    """
    manifest = read_manifest(data)
    _check(networks, data, manifest, batch, limit, subset)
    attacks = _attacks(methods, eps, steps, loss, headline_eps)
    tallies = {network.name: [_Tally() for _ in range(1 + len(attacks))] for network in networks}
    crossed = {source.name: {t.name: _Tally() for t in networks if t is not source} for source in networks}
    object_id, z_spec, example = [], [], None
    for stamps in batches(data, manifest, batch, "attacking galaxies", limit, subset):
        shown: dict[str, _Shown] = {}
        tensor = tensors(stamps, device)
        for network in networks:
            clean = pdfs(network, tensor["images"], tensor["ebv"], tensor["object_id"])
            tallies[network.name][0].add(network, clean, stamps.z_spec)
            z = labels(network.bins, clean, tensor["z_spec"])
            for tally, attack in zip(tallies[network.name][1:], attacks, strict=True):
                attacked = _perturb(network, tensor, z, attack, seed, precision)
                pdf = pdfs(network, attacked, tensor["ebv"], tensor["object_id"])
                tally.add(network, pdf, stamps.z_spec)
                if attack.eps == headline_eps:  # the strongest method comes last and stays
                    shown[network.name] = _Shown(attacked, clean, pdf)
        for source, targets in crossed.items():
            for target in (network for network in networks if network.name in targets):
                pdf = pdfs(target, shown[source].attacked, tensor["ebv"], tensor["object_id"])
                targets[target.name].add(target, pdf, stamps.z_spec)
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
        methods=tuple(dict.fromkeys(attack.method for attack in attacks)),
        eps=tuple(sorted({attack.eps for attack in attacks})),
        headline_eps=headline_eps,
        steps=steps,
        loss=loss,
        seed=seed,
        precision=precision,
        networks=tuple(
            _network_result(network, tallies[network.name], attacks, truth) for network in networks
        ),
        transfer={s: {t: tally.metrics(truth) for t, tally in ts.items()} for s, ts in crossed.items() if ts},
        example=example,
        subset=subset,
        limit=limit,
    )


def labels(bins: RedshiftBins, clean: Tensor, z_spec: Tensor) -> Tensor:
    """The redshift an attack moves away from, (N,) float32: z_spec, or the most probable bin where unknown.

    The mode and not the mean: |<z> - z| has no gradient at z = <z>, and one FGSM step would not move.

    Args:
        bins: what the PDFs mean.
        clean: (N, bins) PDFs of the images before the attack.
        z_spec: (N,) float32, NaN: unknown.
    """
    own = bins.centres(str(clean.device))[clean.argmax(dim=1)]
    return torch.where(torch.isnan(z_spec), own, z_spec)


@dataclass(frozen=True)
class _Shown:
    attacked: Tensor
    pdf_clean: Tensor
    pdf_attacked: Tensor


class _Tally:
    """Numbers per object, batch after batch."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []

    def add(self, network: Network, pdf: Tensor, z_spec: Floats) -> None:
        mean = (pdf @ network.bins.centres(str(pdf.device))).cpu().numpy()
        scores = np.full((3, len(pdf)), np.nan)
        known = np.isfinite(z_spec)
        p, e, z = pdf.cpu().numpy()[known], edges(network.bins), z_spec[known]
        scores[:, known] = metrics.pit(p, e, z), metrics.crps(p, e, z), metrics.cde_loss(p, e, z)
        self._parts.append(np.vstack([mean, scores]).astype(np.float32))

    def numbers(self) -> Floats:
        """(4, N): <z>, PIT, CRPS, CDE loss."""
        return np.concatenate(self._parts, axis=1)

    def metrics(self, z_spec: Floats) -> dict[str, float]:
        known = np.isfinite(z_spec)
        z_phot, _, crps, cde = self.numbers()[:, known]
        return metrics.summary(z_phot, z_spec[known], crps, cde) if known.any() else {}


def _network_result(
    network: Network, tallies: list[_Tally], attacks: list[Attack], z_spec: Floats
) -> NetworkResult:
    reference = tallies[0].numbers()[0]
    conditions = []
    for (method, eps), tally in zip(
        [(CLEAN, 0.0), *((a.method, a.eps) for a in attacks)], tallies, strict=True
    ):
        z_phot, pit = tally.numbers()[:2]
        median, p90 = np.percentile(np.abs(z_phot - reference), [50, 90]).tolist()
        conditions.append(Condition(method, eps, z_phot, pit, tally.metrics(z_spec), median, p90))
    return NetworkResult(network.name, network.step, network.bins, tuple(conditions))


def _perturb(
    network: Network, tensor: dict[str, Tensor], z: Tensor, attack: Attack, seed: int, precision: str
) -> Tensor:
    with torch.autocast(tensor["images"].device.type, torch.bfloat16, enabled=precision == "bf16"):
        return perturb(
            network.module,
            tensor["images"],
            tensor["ebv"],
            z,
            tensor["sky_sigma"],
            tensor["object_id"],
            attack=attack,
            bins=network.bins,
            seed=seed,
        )


def _example(networks: Sequence[Network], stamps: Stamps, shown: dict[str, _Shown]) -> Example:
    """A typical galaxy: the headline attack moves its <z>, by the first network, by the median amount."""
    first, known = networks[0], np.isfinite(stamps.z_spec)
    change = shown[first.name].pdf_attacked - shown[first.name].pdf_clean
    moved = (change @ first.bins.centres(str(change.device))).abs().cpu().numpy()
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


def _attacks(
    methods: Sequence[str], eps: Sequence[float], steps: int, loss: str, headline_eps: float
) -> list[Attack]:
    if not methods:
        raise BadInput("no attack method: give fgsm, pgd or both")
    if headline_eps <= 0:
        raise BadInput(f"headline epsilon {headline_eps}: must be above 0 sky sigma")
    radii = sorted({float(e) for e in eps if e} | {float(headline_eps)})
    ordered = sorted(dict.fromkeys(methods))  # fgsm before pgd
    tree = [
        {"method": method, "eps": radius, "steps": steps, "loss": loss}
        for method in ordered
        for radius in radii
    ]
    return [parse({"attack": section}, "evaluation").attack for section in tree]


def _check(
    networks: Sequence[Network],
    data: Path,
    manifest: Manifest,
    batch: int,
    limit: int | None,
    subset: Subset,
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
    for network in networks:
        check_fits(network, manifest.header, data)
        check_redshifts(network.bins, data, manifest, f"run '{network.name}'", subset)


def check_redshifts(
    bins: RedshiftBins, data: Path, manifest: Manifest, who: str, subset: Subset = EVERYTHING
) -> None:
    """Refuse a dataset with a known z_spec outside the bins, naming the first such object.

    Raises:
        BadInput: there is one, or a shard whose labels cannot be read.
    """
    for shard in manifest.shards:
        if shard.z_min is None or shard.z_max is None:
            continue
        if shard.z_min >= bins.z_min and shard.z_max < bins.z_max:
            continue
        with open_shard(data, manifest, shard) as file, readable(data / shard.file, 0, shard.rows):
            columns = {name: file[name][:] for name in {"z_spec", "object_id"} | subset.columns}
        z, object_id = columns["z_spec"], columns["object_id"]
        for i in np.flatnonzero(subset(columns) & ((z < bins.z_min) | (z >= bins.z_max))):
            raise BadInput(
                f"{data / shard.file}: object {object_id[i]} has z_spec {z[i]:.4f}, outside "
                f"[{bins.z_min}, {bins.z_max}) of {who}: leave such objects out, with --where"
            )
