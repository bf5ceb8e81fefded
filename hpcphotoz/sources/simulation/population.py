"""Draws galaxies of a flux-limited survey: redshift, luminosity, type, size and shape.

A galaxy of one of the survey's classes (`survey_tables`) is a bulge plus a disc, each with its own mixture of
spectra.
"""

import math
from dataclasses import dataclass

import numpy as np

from hpcphotoz.sources.constants import BANDS, ZERO_POINT
from hpcphotoz.sources.simulation.survey_tables import (
    CLASSES,
    EXTINCTION,
    R_BAND,
    Floats,
    SurveyTables,
    mixture,
)


@dataclass(frozen=True)
class Properties:
    """What is drawn of a galaxy: its fluxes, radii and shape follow from these."""

    galaxy_class: int  # index into CLASSES
    z: float
    magnitude: float  # absolute AB, rest-frame r
    cos_inclination: float
    bulge_fraction: float  # in rest-frame r
    dust: float  # internal E(B-V) of the disc, mag
    bulge_type: float  # in template numbers
    disc_type: float
    colour: Floats  # (band,) mag, scatter about the spectra; 0 in r
    ebv: float  # Milky Way, mag
    size: float  # scatter of ln R about the relation of size and luminosity
    axis_ratio_bulge: float
    position_angle: float  # rad, from +x towards +y


@dataclass(frozen=True)
class Galaxy:
    """One drawn galaxy. Its fluxes are those at the telescope, dimmed by the Milky Way's dust."""

    z: float
    ebv: float  # Milky Way, mag
    r_magnitude: float  # dereddened, total
    galaxy_class: int  # index into CLASSES
    flux_bulge: Floats  # (band,) nanomaggies
    flux_disc: Floats  # (band,) nanomaggies
    radius_bulge: float  # half-light, along the major axis, arcsec
    radius_disc: float
    axis_ratio_bulge: float
    axis_ratio_disc: float
    position_angle: float  # rad, from +x towards +y


def generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of galaxy `index` of a seed."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def draw_galaxy(tables: SurveyTables, rng: np.random.Generator) -> Galaxy:
    """Draws one galaxy of the survey."""
    return make_galaxy(tables, draw_properties(tables, rng))


def draw_properties(tables: SurveyTables, rng: np.random.Generator) -> Properties:
    """Draws the properties of one galaxy of the survey.

    Candidates come from the volume that the smallest K correction allows. One that is fainter than the limit
    with its own spectrum and dust is drawn again, with class and redshift, so that the selection is exact.
    """
    while True:
        drawn = _candidate(tables, rng)
        if make_galaxy(tables, drawn).r_magnitude < tables.survey.r_limit:
            return drawn


def _candidate(tables: SurveyTables, rng: np.random.Generator) -> Properties:
    survey = tables.survey
    index = min(int(np.searchsorted(tables.class_cdf, rng.random(), side="right")), len(CLASSES) - 1)
    kind = CLASSES[index]
    z = float(np.interp(rng.random(), tables.z_cdf[index], tables.z))
    count = tables.count[index]
    brighter = np.interp(np.interp(z, tables.z, tables.faintest), tables.magnitude, count)
    magnitude = float(np.interp(rng.random() * brighter, count, tables.magnitude))

    cos_inclination = rng.random()
    bulge_fraction = rng.beta(*kind.bulge_beta)
    dust = kind.dust * rng.exponential() * (2.0 - cos_inclination)
    bulge_type, disc_type = abs(rng.normal(*kind.bulge_type)), abs(rng.normal(*kind.disc_type))
    colour = rng.normal(0.0, survey.colour_scatter, len(BANDS))
    colour[R_BAND] = 0.0
    return Properties(
        galaxy_class=index,
        z=z,
        magnitude=magnitude,
        cos_inclination=cos_inclination,
        bulge_fraction=bulge_fraction,
        dust=dust,
        bulge_type=bulge_type,
        disc_type=disc_type,
        colour=colour,
        ebv=min(survey.ebv_median * math.exp(survey.ebv_scatter * rng.standard_normal()), survey.ebv_max),
        size=survey.size_scatter * rng.standard_normal(),
        axis_ratio_bulge=rng.uniform(0.6, 1.0),
        position_angle=rng.uniform(0.0, math.pi),
    )


def make_galaxy(tables: SurveyTables, of: Properties) -> Galaxy:
    """Makes the galaxy that has some properties: its fluxes, radii and shape as they are seen."""
    kind, z = CLASSES[of.galaxy_class], of.z
    bulge = mixture(tables, z, of.bulge_type)
    disc = mixture(tables, z, of.disc_type) * 10 ** (-0.4 * of.dust * EXTINCTION)
    apparent = of.magnitude + float(np.interp(z, tables.z, tables.distance_modulus))
    # The Milky Way's dust reddens the whole galaxy; the selection is by the magnitude without it.
    scale = 10 ** (-0.4 * (apparent - ZERO_POINT + of.colour))
    flux_bulge, flux_disc = of.bulge_fraction * bulge * scale, (1 - of.bulge_fraction) * disc * scale
    seen = 10 ** (-0.4 * of.ebv * EXTINCTION)

    radius = kind.radius_kpc * 10 ** (-0.4 * kind.radius_slope * (of.magnitude + 21.0)) * math.exp(of.size)
    radius *= float(np.interp(z, tables.z, tables.arcsec_per_kpc))
    bulge_size, thickness = (0.8, 0.5) if of.galaxy_class == 0 else (0.3, 0.2)
    return Galaxy(
        z=z,
        ebv=of.ebv,
        r_magnitude=ZERO_POINT - 2.5 * math.log10(flux_bulge[R_BAND] + flux_disc[R_BAND]),
        galaxy_class=of.galaxy_class,
        flux_bulge=flux_bulge * seen,
        flux_disc=flux_disc * seen,
        radius_bulge=radius * bulge_size,
        radius_disc=radius * (1.4 if of.galaxy_class == 0 else 1.0),
        axis_ratio_bulge=of.axis_ratio_bulge,
        # An oblate disc of intrinsic thickness 0.2 (early: 0.5) seen at this inclination (Hubble 1926).
        axis_ratio_disc=math.sqrt(of.cos_inclination**2 + thickness**2 * (1 - of.cos_inclination**2)),
        position_angle=of.position_angle,
    )
