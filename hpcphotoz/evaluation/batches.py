"""Batches of a dataset for evaluation and prediction, and their redshift labels."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.format.shards import naming_damage, open_shard
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins


def attack_labels(bins: RedshiftBins, clean: Tensor, z_spec: Tensor) -> Tensor:
    """Labels of an attack, (N,) float32: z_spec, or the most probable redshift where z_spec is unknown.

    The mode of the PDF and not its mean: |<z> - z| has no gradient at z = <z>, so FGSM would not move.

    Args:
        bins: what the PDFs mean.
        clean: (N, bins) PDFs of the images before the attack.
        z_spec: (N,) float32, NaN: unknown.
    """
    mode = bins.centres(str(clean.device))[clean.argmax(dim=1)]
    return torch.where(torch.isnan(z_spec), mode, z_spec)


def check_redshifts(
    bins: RedshiftBins, data: Path, manifest: Manifest, who: str, subset: Subset = ALL_OBJECTS
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
        with open_shard(data, manifest, shard) as file, naming_damage(data / shard.file, 0, shard.rows):
            columns = {name: file[name][:] for name in {"z_spec", "object_id"} | subset.columns}
        z, object_id = columns["z_spec"], columns["object_id"]
        for i in np.flatnonzero(subset(columns) & ((z < bins.z_min) | (z >= bins.z_max))):
            raise BadInput(
                f"{data / shard.file}: object {object_id[i]} has z_spec {z[i]:.4f}, outside "
                f"[{bins.z_min}, {bins.z_max}) of {who}: leave such objects out, with --where"
            )
