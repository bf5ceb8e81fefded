"""The galaxies of the simulated survey: selection, classes, spectra and luminosity functions, as tables.

The survey is the benchmark selection of the SDSS main sample: total r < 17.8 after correcting for the Milky
Way's dust, and z < 0.4. Three classes (early, spiral, irregular) with Schechter (1976) luminosity functions
fill comoving space. Spectra are those of Coleman, Wu & Weedman (1980), and mixtures of them. The parameters
below were chosen so that the sample has the depth and the colour mix of that survey; they are not fits.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.sources.constants import BANDS, SDSS_EXTINCTION
from hpcphotoz.sources.optional_imports import sources_extra

Floats = npt.NDArray[np.floating[Any]]

R_BAND = BANDS.index("r")
EXTINCTION = np.array(SDSS_EXTINCTION)
TEMPLATES = ("E", "Sbc", "Scd", "Im")  # type 0, 1, 2, 3


@dataclass(frozen=True)
class GalaxyClass:
    """A class of galaxies: luminosity function, spectral types, bulges, sizes and dust."""

    name: str
    m_star: float  # AB magnitude, rest-frame r, h = 0.7
    alpha: float
    phi_star: float  # Mpc^-3
    bulge_type: tuple[float, float]  # mean and scatter, in template numbers
    disc_type: tuple[float, float]
    bulge_beta: tuple[float, float]  # bulge-to-total ratio in rest-frame r: a Beta distribution
    radius_kpc: float  # half-light radius at M_r = -21
    radius_slope: float  # R ~ L^slope
    dust: float  # mean internal E(B-V) of a face-on disc, mag


CLASSES = (
    GalaxyClass("early", -21.4, -0.5, 2.2e-3, (0.0, 0.05), (0.15, 0.08), (5.0, 2.0), 2.8, 0.60, 0.0),
    GalaxyClass("spiral", -21.1, -1.0, 2.8e-3, (0.12, 0.08), (1.3, 0.45), (1.5, 4.0), 4.0, 0.33, 0.04),
    GalaxyClass("irregular", -20.0, -1.3, 2.5e-3, (0.5, 0.2), (2.4, 0.35), (1.0, 12.0), 3.4, 0.30, 0.03),
)


@dataclass(frozen=True)
class Survey:
    """Selection and cosmology of the survey, and the scatter of galaxies about their class."""

    r_limit: float = 17.8  # dereddened total AB magnitude
    z_min: float = 0.005
    z_max: float = 0.4
    h0: float = 70.0  # km/s/Mpc, flat
    omega_m: float = 0.3
    size_scatter: float = 0.30  # of ln R
    colour_scatter: float = 0.025  # mag, of each band against r
    ebv_median: float = 0.03  # mag, log-normal
    ebv_scatter: float = 0.75  # of ln E(B-V)
    ebv_max: float = 0.5


@dataclass(frozen=True)
class SurveyTables:
    """Tables that a draw interpolates in: plain arrays, which pickle for worker processes."""

    survey: Survey
    z: Floats  # (nz,)
    distance_modulus: Floats  # (nz,) mag
    arcsec_per_kpc: Floats  # (nz,)
    relative_flux: (
        Floats  # (nz, template, band): f_nu in the band at z over that in rest-frame r, same distance
    )
    class_cdf: Floats  # (class,)
    z_cdf: Floats  # (class, nz)
    magnitude: Floats  # (nm,) rest-frame r, bright to faint
    count: Floats  # (class, nm) galaxies brighter than that, Mpc^-3
    faintest: Floats  # (nz,) M_r that r_limit allows for the spectrum with the smallest K correction


def make_survey_tables(survey: Survey | None = None) -> SurveyTables:
    """Tabulates distances, K corrections and the distribution of (class, z).

    Raises:
        BadInput: a library of the `sources` extra is missing.
    """
    with sources_extra():  # here and below, since worker processes get the tables and need no such import
        from astropy.cosmology import FlatLambdaCDM

    survey = survey or Survey()
    z = np.linspace(survey.z_min, survey.z_max, 256)
    cosmology = FlatLambdaCDM(H0=survey.h0, Om0=survey.omega_m)
    modulus = np.asarray(cosmology.distmod(z).value)
    volume = np.asarray(cosmology.differential_comoving_volume(z).value)
    relative = band_fluxes(z)
    faintest = survey.r_limit - modulus + 2.5 * np.log10(relative[:, :, R_BAND].max(axis=1))
    magnitude = np.arange(-25.0, -13.0, 0.02)
    count = np.stack([_cumulative_integral(schechter(magnitude, c), magnitude) for c in CLASSES])
    density = np.stack([volume * np.interp(faintest, magnitude, row) for row in count])
    z_cdf = np.stack([_cumulative_integral(row, z) for row in density])
    totals = z_cdf[:, -1]
    return SurveyTables(
        survey=survey,
        z=z,
        distance_modulus=modulus,
        arcsec_per_kpc=np.asarray(cosmology.arcsec_per_kpc_proper(z).value),
        relative_flux=relative,
        class_cdf=np.cumsum(totals) / totals.sum(),
        z_cdf=z_cdf / totals[:, None],
        magnitude=magnitude,
        count=count,
        faintest=faintest,
    )


def band_fluxes(z: Floats) -> Floats:
    """Returns SDSS band fluxes of the template spectra at redshifts z (nz,) over their rest-frame r flux.

    They are AB flux ratios (nz, 4, 5) at one luminosity distance; -2.5 log10 of the r column is the K
    correction.
    """
    with sources_extra():
        import galsim
        import speclite.filters
        from astropy import units

    curves = speclite.filters.load_filters("sdss2010-*")
    wavelength = np.arange(2800.0, 11400.0, 4.0)  # Angstrom: covers the five curves
    answer = np.empty((len(z), len(TEMPLATES), len(BANDS)))
    for k, name in enumerate(TEMPLATES):
        path = f"{galsim.meta_data.share_dir}/SEDs/CWW_{name}_ext.sed"  # Angstrom, f_lambda
        table = galsim.LookupTable.from_file(path, interpolant="linear")
        shifts = np.concatenate([[0.0], z])[:, None]
        flux = np.array([table(wavelength / (1 + s)) / (1 + s) for (s,) in shifts])
        unit = units.erg / (units.cm**2 * units.s * units.Angstrom)
        maggies = curves.get_ab_maggies(flux * unit, wavelength * units.Angstrom, mask_invalid=False)
        bands = np.stack([np.asarray(maggies[f"sdss2010-{band}"]) for band in BANDS], axis=1)
        answer[:, k] = bands[1:] / bands[0, R_BAND]
    return answer


def schechter(magnitude: Floats, of: GalaxyClass) -> Floats:
    """Returns the luminosity function phi(M), Mpc^-3 mag^-1 (Schechter 1976)."""
    x = 10 ** (-0.4 * (magnitude - of.m_star))
    return np.asarray(0.4 * math.log(10) * of.phi_star * x ** (of.alpha + 1) * np.exp(-x))


def mixture(tables: SurveyTables, z: float, kind: float) -> Floats:
    """Returns relative band fluxes (5,) between two templates: 0 is E, 1 Sbc, 2 Scd, 3 and more Im."""
    kind = min(kind, len(TEMPLATES) - 1.0)
    low = min(int(kind), len(TEMPLATES) - 2)
    step = (z - tables.z[0]) / (tables.z[1] - tables.z[0])
    row = min(int(step), len(tables.z) - 2)
    w, v = kind - low, step - row
    at_z = (1 - v) * tables.relative_flux[row] + v * tables.relative_flux[row + 1]
    return np.asarray((1 - w) * at_z[low] + w * at_z[low + 1])


def _cumulative_integral(density: Floats, at: Floats) -> Floats:
    steps = 0.5 * (density[1:] + density[:-1]) * np.diff(at)
    return np.concatenate([[0.0], np.cumsum(steps)])
