"""The record of appends in a dataset's provenance: `appended` lists what was added, and to which version."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpcphotoz.data.format.manifest import Manifest


def appended_provenance(
    base: Manifest, record: Mapping[str, Any], already_there: int, rows: int, files: Sequence[str]
) -> dict[str, Any]:
    """The provenance of a dataset after an append.

    Args:
        base: the dataset before.
        record: how the new objects were made.
        already_there: number of objects that were left out, as they are in it.
        rows, files: number of new objects, and their shards.
    """
    earlier = base.provenance.get("appended", [])
    new = {**record, "rows_added": rows, "already_there": already_there, "shards": list(files)}
    new["manifest_sha256"] = base.sha256
    return {**base.provenance, "appended": [*(earlier if isinstance(earlier, list) else [earlier]), new]}


def versions_of(manifest: Manifest) -> list[str]:
    """Checksums of the manifest and of those that it replaced, whose objects the dataset still holds."""
    appended = manifest.provenance.get("appended")
    earlier = [one for one in appended if isinstance(one, Mapping)] if isinstance(appended, list) else []
    return [manifest.sha256, *(str(one["manifest_sha256"]) for one in earlier if "manifest_sha256" in one)]
