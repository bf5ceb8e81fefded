"""Measures how far natural perturbations and the headline attack move the redshifts of each network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.batches import to_tensors
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.natural.columns import Columns, Floats
from hpcphotoz.evaluation.natural.perturbations import NATURAL, TYPICAL_FWHM, SkyStamps
from hpcphotoz.evaluation.network import view_of
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.scoring.bootstrap import ratio_errors

OBJECTS = 2048  # that are perturbed, by default
ATTACK = "attack"
CLEAN = "clean"
_PERCENTS = (50, 90)  # of the galaxies: the changes of <z> that are quoted


@dataclass(frozen=True)
class MovedRedshifts:
    """One network's <z> of the same galaxies, clean and perturbed.

    Attributes:
        z_spec: (N,) NaN: unknown.
        clean: (N,) <z> of the clean images.
        moved: (N,) <z> of the perturbed images, by name of the perturbation.
        rms: (N,) root mean square of the change of the pixels that the network sees, sky sigmas, by name;
            empty: not measured.
        greatest: (N,) greatest change of such a pixel, sky sigmas, likewise.
    """

    z_spec: Floats
    clean: Floats
    moved: Mapping[str, Floats]
    rms: Mapping[str, Floats]
    greatest: Mapping[str, Floats]

    def change(self, name: str) -> tuple[float, float]:
        """Median and 90th percentile of |<z> perturbed - <z> clean|."""
        median, p90 = np.percentile(self.absolute_change(name), _PERCENTS).tolist()
        return median, p90

    def absolute_change(self, name: str) -> Floats:
        """|<z> perturbed - <z> clean|, (N,)."""
        return np.asarray(np.abs(self.moved[name] - self.clean))

    def metrics(self, name: str) -> dict[str, float]:
        """`bias`, `sigma_mad` and `eta` over the galaxies of known z_spec; empty if there is none."""
        known = np.isfinite(self.z_spec)
        if not known.any():
            return {}
        z_phot = self.clean if name == CLEAN else self.moved[name]
        dz = metrics.residuals(z_phot[known], self.z_spec[known])
        return {"bias": metrics.bias(dz), "sigma_mad": metrics.sigma_mad(dz), "eta": metrics.eta(dz)}

    def record(self, name: str) -> dict[str, Any]:
        """Entry of `metrics.json`: change of <z>, metrics, amplitude, and the attack's change over it.

        Its `errors` are those of the attack's change over that of the perturbation, of the same galaxies.
        """
        median, p90 = self.change(name)
        found: dict[str, Any] = {"shift_median": median, "shift_p90": p90, **self.metrics(name)}
        if name in self.rms:
            found["rms_sky_sigma"] = float(np.median(self.rms[name]))
            found["max_sky_sigma"] = float(np.median(self.greatest[name]))
        attack = self.change(ATTACK)
        found["attack_over_this"] = attack[0] / median if median > 0 else None
        found["attack_over_this_p90"] = attack[1] / p90 if p90 > 0 else None
        errors = ratio_errors(self.absolute_change(ATTACK), self.absolute_change(name), _PERCENTS)
        ratios = ("attack_over_this", "attack_over_this_p90")
        found["errors"] = dict(zip(ratios, errors, strict=True))
        return {**found, "n": len(self.clean)}


@dataclass(frozen=True)
class NaturalShifts:
    """The <z> of all networks, clean and perturbed, of the same galaxies."""

    ra: Floats  # (N,) deg
    dec: Floats  # (N,) deg
    networks: dict[str, MovedRedshifts]


def measure_natural(headline: HeadlineAttack, objects: int = OBJECTS) -> NaturalShifts:
    """Perturb the first galaxies of an evaluation in all natural ways, and attack them once more.

    An object costs a forward pass for each perturbation and network, and the headline attack.

    Args:
        headline: the evaluation's headline attack; its result's seed keys the perturbations.
        objects: greatest number of objects, whose <z> memory holds under every perturbation.

    Returns:
        The <z> of these objects, the same on every rank.

    Raises:
        BadInput: a shard cannot be read, or an output is not finite.
    """
    limit = min(objects, headline.result.objects)
    result, ranks = replace(headline.result, limit=limit), headline.ranks
    headline, scale = replace(headline, result=result), result.header.pixel_scale
    passes = limit * len(NATURAL) // ranks.size
    forwards = {one.name: DatasetForward(one, headline.batch, passes) for one in headline.networks}
    names = [one.name for one in NATURAL]
    columns = Columns(("ra", "dec", "z_spec"))
    amplitudes = (f"{kind} {name}" for name in (ATTACK, *names) for kind in ("rms", "max"))
    all_names = (CLEAN, ATTACK, *names, *amplitudes)
    own = {network.name: Columns(all_names) for network in headline.networks}
    views = {network.name: view_of(network) for network in headline.networks}
    for stamps, attacked in headline.batches("perturbing galaxies"):
        tensor = to_tensors(stamps, headline.device)
        sky = sky_stamps(stamps, tensor, scale, result.seed)
        for name in ("ra", "dec", "z_spec"):
            columns.add(name, getattr(stamps, name))
        for network in headline.networks:
            to, found = own[network.name], attacked[network.name]
            to.add(CLEAN, network.bins.integral(found.pdf_clean))
            to.add(ATTACK, network.bins.integral(found.pdf_attacked))
            # An attack leaves pixels outside a network's crop at its random start.
            to.add_amplitude(ATTACK, views[network.name].cut(sky.in_sky_sigmas(found.attacked)))
        for one in NATURAL:
            images = one.perturb(sky)
            change = sky.in_sky_sigmas(images)
            for network in headline.networks:
                pdf = headline.scored_pdfs(network, tensor, images, forwards[network.name])
                own[network.name].add(one.name, network.bins.integral(pdf))
                own[network.name].add_amplitude(one.name, views[network.name].cut(change))
    shared = columns.gather(ranks)
    moved = {}
    for network in headline.networks:
        found_here = own[network.name].gather(ranks)
        kinds = ({name: found_here[f"{kind} {name}"] for name in (ATTACK, *names)} for kind in ("rms", "max"))
        redshifts = {name: found_here[name] for name in (ATTACK, *names)}
        moved[network.name] = MovedRedshifts(shared["z_spec"], found_here[CLEAN], redshifts, *kinds)
    return NaturalShifts(shared["ra"], shared["dec"], moved)


def sky_stamps(stamps: Stamps, tensor: dict[str, Tensor], pixel_scale: float, seed: int) -> SkyStamps:
    """A batch with its PSF: the column `psf_fwhm`, (N, B) arcsec, or 1.3 arcsec where that is unknown."""
    sky_sigma = tensor["sky_sigma"]
    fwhm = torch.full_like(sky_sigma, TYPICAL_FWHM)
    given = stamps.extra.get("psf_fwhm")
    if given is not None and given.shape == tuple(sky_sigma.shape):
        column = torch.from_numpy(np.array(given, np.float32)).to(sky_sigma.device)
        fwhm = torch.where(column.isfinite() & (column > 0), column, fwhm)
    return SkyStamps(tensor["images"], sky_sigma, tensor["object_id"], fwhm, pixel_scale, seed)
