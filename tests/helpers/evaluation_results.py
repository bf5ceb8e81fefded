"""Results of evaluations, made of random numbers, and properties that the sections of a report share."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.masking.attacks import PGD, SQUARE, STRONG_APGD, STRONG_PGD, masking_attacks
from hpcphotoz.evaluation.masking.measure import Array, MaskingLosses
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import (
    ConditionResult,
    EvaluationResult,
    ExampleGalaxy,
    NetworkResult,
    RedshiftScatter,
)
from hpcphotoz.evaluation.scoring.measure import Measured
from hpcphotoz.models.bins import RedshiftBins

BINS = RedshiftBins(20, 0.0, 0.4)


BANDS = ("u", "g", "r", "i", "z")
WIDEST_PX = 470  # CSS pixels of a picture: at 400 px of width, text of 10 points is still 11 pixels high


def make_result(
    names: tuple[str, ...] = ("standard", "adversarial"),
    *,
    known: bool = True,
    n: int = 60,
    methods: tuple[str, ...] = ("fgsm", "pgd"),
) -> EvaluationResult:
    """The result of an evaluation of these networks at epsilons of 0.05, 0.1 and 0.5.

    Args:
        names: of the networks.
        known: whether redshifts are known.
        n: number of objects.
        methods: of attack.
    """
    rng = np.random.default_rng(0)
    z = rng.uniform(0.02, 0.38, n).astype(np.float32)

    def condition(method: str, eps: float) -> ConditionResult:
        z_phot = np.clip(z + rng.normal(0, 0.02 + 0.2 * eps, n), 0, 0.4).astype(np.float32)
        pit = rng.uniform(0, 1, n)
        crps, cde, brier = np.full(n, 0.01 + eps), np.full(n, -5.0), np.full(n, 0.9)
        figures = metrics.summary(z_phot, z, crps, cde, brier=brier, pit=pit, hpd=pit) if known else {}
        none, pairs = np.zeros((0, 0), np.int64), (z, z_phot)
        counts = metrics.pit_histogram(pit) if known else np.zeros(20, np.int64)
        return ConditionResult(
            method=method,
            eps=eps,
            objects=n,
            metrics=figures,
            errors={name: 0.001 for name in figures if name != "n"},
            pit_histogram=counts,
            shift_median=eps / 10,
            shift_p90=eps / 5,
            scatter=RedshiftScatter(*pairs, none, (0.0, 0.44)) if known else None,
        )

    grid = [("clean", 0.0), *((method, eps) for method in methods for eps in (0.05, 0.1, 0.5))]
    networks = tuple(
        NetworkResult(name, 7, BINS, tuple(condition(*point) for point in grid)) for name in names
    )
    image = rng.normal(0, 0.02, (5, 16, 16)).astype(np.float32)
    pdf = rng.dirichlet(np.ones(20)).astype(np.float32)
    example = ExampleGalaxy(
        object_id=42,
        z_spec=float(z[0]) if known else float("nan"),
        image=image,
        sky_sigma=np.full(5, 0.02, np.float32),
        attacked={name: image + np.float32(0.002) for name in names},
        pdf_clean={name: pdf for name in names},
        pdf_attacked={name: pdf[::-1].copy() for name in names},
    )
    shown = networks[0].at(methods[0], 0.1)
    own = Measured(shown.metrics, shown.errors)
    return EvaluationResult(
        data=Path("survey & more"),
        header=Header(BANDS, 16, 0.396),
        objects=n,
        unlabelled=0 if known else n,
        methods=methods,
        eps=(0.05, 0.1, 0.5),
        headline_eps=0.1,
        steps=10,
        loss="cross_entropy",
        precision="fp32",
        seed=0,
        networks=networks,
        transfer={a: {b: own for b in names if b != a} for a in names} if len(names) > 1 else {},
        example=example,
    )


def make_baseline() -> dict[str, Any]:
    """What `knn_colours` returns, made of the metrics of a clean network."""
    clean = make_result(("neighbours",)).networks[0].clean
    return {**clean.metrics, "errors": clean.errors, "n_train": 500, "aperture_arcsec": 2.5}


def check_section(section: ReportSection) -> None:
    """Assert that pictures have alternative texts with axes and numbers, and tables have captions."""
    assert set(section.alts) == set(section.figures)
    for name, alt in section.alts.items():
        assert len(alt) > 80 and any(c.isdigit() for c in alt), (name, alt)
        assert " against " in alt or " axis" in alt or "in each band" in alt or " over " in alt, (name, alt)
        png = section.figures[name]
        assert png.startswith(b"\x89PNG")
        at = png.index(b"pHYs") + 4
        pixels, per_metre = struct.unpack(">I", png[16:20])[0], struct.unpack(">I", png[at : at + 4])[0]
        assert pixels / per_metre / 0.0254 * 100 < WIDEST_PX, name
    assert len(section.captions) == len(section.tables)
    assert all(len(row) == len(table[0]) for table in section.tables for row in table)


MASKED = 64  # galaxies of `masking_losses`
MASKING_ATTACKS = list(masking_attacks(0.1))


def masking_losses(**changes: Array) -> MaskingLosses:
    """Losses that pass every check; `changes` by the names of the fields or of `_LOSS_NAMES`."""
    rng = np.random.default_rng(0)
    clean = rng.gamma(2.0, 1.0, MASKED)
    attacked = {name: clean + 1 + 0.1 * MASKING_ATTACKS.index(name) for name in MASKING_ATTACKS}
    for factor, rise in ((0.25, 0.3), (0.5, 0.6), (2, 2.0), (4, 4.0)):
        attacked[f"PGD-10 at {factor:g} epsilon"] = clean + rise
    attacked |= {"PGD-10": clean + 1.2, PGD: clean + 1.5, STRONG_PGD: clean + 2, STRONG_APGD: clean + 2.1}
    attacked[SQUARE] = clean + 0.5
    transferred = {"other": clean + 0.4}
    for name, change in changes.items():
        where = transferred if name == "other" else attacked
        where[_LOSS_NAMES.get(name, name)] = change
    return MaskingLosses("run", clean, attacked, transferred, np.zeros(MASKED), np.ones(MASKED))


_LOSS_NAMES = {"square": SQUARE, "apgd": STRONG_APGD, "strong": STRONG_PGD, "pgd_3": "PGD-3", "pgd_50": PGD}
