"""Writes an attacked copy of a dataset, in the same format, on which any program can be tested."""

from dataclasses import replace
from pathlib import Path

import torch

from hpcphotoz.config import Attack
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import attack_labels, check_batch, check_redshifts, read_batches, to_tensors
from hpcphotoz.evaluation.inference import DatasetAttack, DatasetForward, check_precision, image_gradients
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp, compute_pdfs


def write_adversarial_dataset(
    network: RedshiftNetwork,
    data: Path,
    out: Path,
    attack: Attack,
    *,
    seed: int = 0,
    batch: int = 128,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    subset: Subset = ALL_OBJECTS,
    precision: str = "fp32",
) -> int:
    """Attack every galaxy of a dataset and write the result as a dataset: same objects, order and columns.

    The pixels are written as float32 whatever the source's storage: rounding to int16 or float16 would move
    a perturbation out of its ball, or lose it. Distances are from the source's decoded pixels.
    Objects of unknown z_spec are attacked away from the network's own clean prediction, or by a shift from
    it, and stay unlabelled. A flux-conserving attack conserves what is written up to the rounding of pixels.
    The manifest's provenance holds the SHA-256 of the source's manifest, its storage, which of its objects
    were attacked, the run, its step and the attack's options.

    Args:
        network: the network to attack.
        data: source dataset.
        out: folder to create; after a failure it has no manifest, that is, it is unfinished.
        attack: configuration of the attack; epsilon and step in sky sigmas.
        seed: key of the random starts.
        batch: batch size.
        device: device of the network.
        limit: greatest number of objects, the first of the subset; None: all.
        subset: which objects of the dataset.
        precision: of the gradients: "fp32", "tf32" or "bf16".

    Returns:
        Number of objects written.

    Raises:
        BadInput: other bands or stamp size than the network's, a z_spec outside its bins, an output that is
            not finite, an empty subset, contradictory options of the attack, or `out` in use.
    """
    problem = attack.conflict(network.bins.z_min, network.bins.z_max)
    if problem:
        raise BadInput(f"{problem} of run '{network.name}'")
    check_precision(precision)
    check_batch(batch, limit)
    manifest = read_manifest(data)
    check_bands_and_stamp(network, manifest.header, data)
    check_redshifts(network.bins, data, manifest, f"run '{network.name}'", subset)
    provenance = {
        "made_by": "hpcphotoz attack",
        "source": data.resolve().name,
        "source_manifest_sha256": manifest.sha256,
        "source_storage": manifest.header.storage,
        "source_subset": {**subset.record(), "limit": limit},
        "source_provenance": dict(manifest.provenance),
        "run": network.name,
        "step": network.step,
        "attack": attack.model_dump(),
        "gradient_precision": precision,
        "seed": seed,
    }
    shard_rows = max((shard.rows for shard in manifest.shards), default=1)
    header, written = replace(manifest.header, storage="float32"), 0
    pixel_columns = [column.name for column in header.extra if column.is_pixels]
    clean_batches = read_batches(data, manifest, batch, "attacking galaxies", limit, subset, pixel_columns)
    objects = min(limit or manifest.rows, manifest.rows)
    dataset_attack = DatasetAttack(network, precision, batch, objects * image_gradients(attack))
    forward = DatasetForward(network, batch, objects)
    with DatasetWriter(out, header, shard_rows, provenance) as writer:
        for stamps in clean_batches:
            tensor = to_tensors(stamps, device)
            clean = compute_pdfs(network, tensor["images"], tensor["ebv"], tensor["object_id"], forward)
            z = attack_labels(network.bins, clean, tensor["z_spec"])
            attacked = dataset_attack(tensor, z, attack, seed)
            writer.append(replace(stamps, images=attacked.cpu().numpy()))
            written += len(stamps)
    return written
