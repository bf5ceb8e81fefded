"""How well could any estimator do? The redshift error that the pixels of simulated galaxies allow.

python -m benchmarks.paper.limit --objects 512 --seed 12 --json PATH

The information of a noisy image on what was drawn of the galaxy (`Properties`) and of the exposure is the
Fisher matrix F: the sum over pixels of the products of the image's derivatives, over the noise's variance.
With the survey's own distribution of the properties as prior, of covariance C, the error of the redshift is
the root of that element of (F + C^-1)^-1: linear near the galaxy's own properties, normal distributions, and
the galaxy's class, its E(B-V) and the sky's noise are known. `sigma_mad` is that of normal deviates with
these errors: what an estimator that uses all of the image would have. It is an approximation and no strict
bound, since true distributions are not normal; the whole stamp of 64 x 64 pixels counts.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcphotoz.atomic import write_text
from hpcphotoz.evaluation.metrics import summary
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.simulation.exposure import CAMERA, Exposure, draw_exposure, noise_variance
from hpcphotoz.sources.simulation.population import (
    Galaxy,
    Properties,
    draw_properties,
    generator,
    make_galaxy,
)
from hpcphotoz.sources.simulation.survey_tables import (
    CLASSES,
    R_BAND,
    Floats,
    SurveyTables,
    make_survey_tables,
)

# Of all derivatives, to both sides, in the units of the property. A step of 1e-3 to one side gave a galaxy at
# redshift 0.013 a tenth of its error: no size and luminosity make up for the curvature over such a step.
STEP = 1e-4
DRAWN = 4000  # galaxies whose properties give the prior
RESAMPLED = 200  # times, for the error
SCALARS = (
    *("z", "magnitude", "cos_inclination", "bulge_fraction", "dust", "bulge_type", "disc_type"),
    *("size", "axis_ratio_bulge", "position_angle"),
)
COLOURS = [f"colour_{band}" for band in BANDS if band != BANDS[R_BAND]]
EXPOSURE = ("seeing", *(f"width_{band}" for band in BANDS), "x", "y")
UNIT_INTERVAL = ("cos_inclination", "bulge_fraction", "axis_ratio_bulge")


def main() -> None:
    """Measure, and write a file."""
    words = argparse.ArgumentParser(prog="python -m benchmarks.paper.limit", description=__doc__)
    words.add_argument("--objects", type=int, required=True, help="simulated galaxies, the first of the seed")
    words.add_argument("--seed", type=int, required=True, help="of `hpcphotoz simulate`")
    words.add_argument("--json", type=Path, required=True, help="file to write")
    given = words.parse_args()
    write_text(given.json, json.dumps(measure(given.objects, given.seed), indent=1) + "\n")


def measure(objects: int, seed: int) -> dict[str, float]:
    """sigma_MAD and eta of normal errors of the size that the pixels allow, with an error over galaxies."""
    tables = make_survey_tables()
    priors = class_priors(tables)
    errors = []
    for index in range(objects):
        rng = generator(seed, index)
        of, exposure = draw_properties(tables, rng), draw_exposure(rng)
        errors.append(redshift_error(tables, of, exposure, priors[of.galaxy_class]) / (1 + of.z))
    sigma, rng = np.array(errors), np.random.default_rng(0)

    def scores(of: Floats, deviates: int) -> dict[str, float]:
        dz = of * rng.standard_normal((max(1, deviates // objects), objects))
        return summary(dz.ravel(), np.zeros(dz.size))

    found = scores(sigma, 10**6)
    again = [scores(rng.choice(sigma, objects), 10**5)["sigma_mad"] for _ in range(RESAMPLED)]
    return {"sigma_mad": found["sigma_mad"], "error": float(np.std(again)), "eta": found["eta"], "n": objects}


def class_priors(tables: SurveyTables) -> dict[int, Floats]:
    """Inverse covariance of the properties in each class, of drawn galaxies, and of the exposure.

    A property that does not vary in a class has no row of information: an infinite one.
    """
    drawn = [draw_properties(tables, generator(0, index)) for index in range(DRAWN)]
    return {
        kind: _inverse([one for one in drawn if one.galaxy_class == kind]) for kind in range(len(CLASSES))
    }


def _inverse(drawn: list[Properties]) -> Floats:
    values = np.array([[getattr(one, name) for name in SCALARS] for one in drawn])
    varied = values.std(axis=0) > 0
    answer = np.zeros((len(SCALARS) + len(COLOURS) + len(EXPOSURE),) * 2)
    place = np.flatnonzero(varied)
    answer[np.ix_(place, place)] = np.linalg.inv(np.cov(values[:, varied], rowvar=False))
    still = np.flatnonzero(~varied)
    answer[still, still] = np.inf
    colours = np.array([np.delete(one.colour, R_BAND) for one in drawn]).std()
    sigmas = [colours] * len(COLOURS)
    sigmas += [CAMERA.seeing_scatter, *[CAMERA.band_scatter] * len(BANDS), *[CAMERA.jitter / 3**0.5] * 2]
    rest = np.arange(len(SCALARS), len(answer))
    answer[rest, rest] = 1 / np.array(sigmas) ** 2
    return answer


def redshift_error(tables: SurveyTables, of: Properties, exposure: Exposure, prior: Floats) -> float:
    """Standard deviation of the redshift that the image of a galaxy allows.

    Args:
        tables: of the survey.
        of, exposure: the galaxy and its exposure, about which the image is taken to be linear.
        prior: inverse covariance of properties and exposure, in the order of `SCALARS`, `COLOURS` and
            `EXPOSURE`; infinite on the diagonal for what is known.
    """
    from hpcphotoz.sources.simulation.rendering import render  # needs galsim

    image = render(make_galaxy(tables, of), exposure)
    weight = 1 / np.sqrt(noise_variance(image, exposure))
    unknown = np.flatnonzero(np.isfinite(prior.diagonal()))
    names = [*SCALARS, *COLOURS, *EXPOSURE]
    slopes = []
    for name in (names[k] for k in unknown):
        steps = _steps(name, of)
        below, above = (render(*_moved(tables, of, exposure, {name: step})) for step in steps)
        slopes.append(((above - below) / (steps[1] - steps[0]) * weight).ravel())
    jacobian = np.array(slopes)
    information = jacobian @ jacobian.T + prior[np.ix_(unknown, unknown)]
    return float(np.sqrt(np.linalg.inv(information)[0, 0]))


def _steps(name: str, of: Properties) -> tuple[float, float]:
    """Steps down and up of a central difference; shorter at the ends of an interval."""
    if name not in UNIT_INTERVAL:
        return -STEP, STEP
    value = getattr(of, name)
    return -min(STEP, value), min(STEP, 1 - value)


def _moved(
    tables: SurveyTables, of: Properties, exposure: Exposure, by: Mapping[str, float]
) -> tuple[Galaxy, Exposure]:
    """The galaxy and its exposure with some properties changed."""
    scalars = {name: getattr(of, name) + step for name, step in by.items() if name in SCALARS}
    colour = of.colour + np.array([by.get(f"colour_{band}", 0.0) for band in BANDS])
    width = by.get("seeing", 0.0) + np.array([by.get(f"width_{band}", 0.0) for band in BANDS])
    x, y = exposure.offset
    offset = (x + by.get("x", 0.0), y + by.get("y", 0.0))
    seen = replace(exposure, fwhm=exposure.fwhm * np.exp(width), offset=offset)
    return make_galaxy(tables, replace(of, colour=colour, **scalars)), seen


if __name__ == "__main__":
    main()
