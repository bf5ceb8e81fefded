"""What a start of a run records in provenance.json beside versions, host and ranks."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcphotoz.config import Config
from hpcphotoz.config.model import TIMM
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.provenance import version_of
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.optimisation.start import start_facts
from hpcphotoz.training.run.run_folder import keep_source


def facts_of_start(
    run: Path,
    config: Config,
    data: Datasets,
    loader: RankLoader,
    components: TrainingComponents,
    step: int,
    command: Sequence[str],
) -> dict[str, Any]:
    """Data, device, network and origin of a start; copies the file of a user's network into the run folder.

    Args:
        run: run folder.
        config, data, loader, components: of this start, whose objects are counted.
        step: optimiser steps taken before.
        command: the words that started it.
    """
    manifest, census = loader.train.manifest, loader.train.census
    split = {"split": {"by": config.data.split_by, **asdict(census.split)}} if census.split else {}
    return {
        "data": str(data.resolve()),
        "manifest_sha256": manifest.sha256,
        "step": step,
        "lost_shards": [manifest.shards[number].file for number in census.lost],
        "lost_objects": census.lost_rows(manifest),
        **split,
        "device": str(components.device),
        "speed": components.compute.facts(),
        "command": list(command),
        **loader.datasets_facts(),
        **_network_facts(run, config, components),
        **start_facts(components),
    }


def _network_facts(run: Path, config: Config, components: TrainingComponents) -> dict[str, Any]:
    """Where a foreign network comes from; its file is copied into the run folder."""
    source = components.source
    if config.model.name.startswith(TIMM):
        return {"network": {"timm": version_of("timm")}}
    if source is None:
        return {}
    copy = keep_source(run, source)
    facts = {"factory": source.factory, "file": str(source.file), "sha256": source.sha256, "copy": copy}
    return {"network": facts}
