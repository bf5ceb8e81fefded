"""The datasets of a training run: one folder, or several with weights."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from hpcphotoz.data.format.manifest import Header, Manifest, read_manifest
from hpcphotoz.data.format.stamps import BandMoments
from hpcphotoz.data.stream.shares import round_shares
from hpcphotoz.errors import BadInput

Given = Path | str | Mapping[Path | str, float] | Mapping[Path, float] | Mapping[str, float]


@dataclass(frozen=True)
class Datasets:
    """Folders of datasets, and the weight of each in every global batch.

    Raises:
        BadInput: no dataset, a weight that is not a number above 0, or a folder that is given twice.
    """

    folders: tuple[Path, ...]
    weights: tuple[float, ...]  # only their ratios matter

    def __post_init__(self) -> None:
        if not self.folders:
            raise BadInput("no dataset is given: name a folder, or several with weights")
        for folder, weight in zip(self.folders, self.weights, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                leave = ": leave the dataset out" if weight == 0 else ""
                raise BadInput(f"{folder}: weight {weight:g}: want a number above 0{leave}")
        real = [folder.resolve() for folder in self.folders]
        for k, folder in enumerate(self.folders):
            if real[k] in real[:k]:
                raise BadInput(f"{folder}: is given twice: give it once, with the sum of its weights")

    @classmethod
    def of(cls, data: "Datasets | Given") -> "Datasets":
        """The datasets that a caller gives: a folder, or a mapping of folders to weights."""
        if isinstance(data, Datasets):
            return data
        if isinstance(data, Mapping):
            try:
                weights = tuple(float(weight) for weight in data.values())
            except (TypeError, ValueError):
                raise BadInput(f"weights of datasets {list(data.values())!r}: want numbers") from None
            return cls(tuple(Path(folder) for folder in data), weights)
        return cls((Path(data),), (1.0,))

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """The datasets of a command line, FOLDER or FOLDER:WEIGHT.

        A word that is the name of an existing folder is that folder, whatever is in its name. In any other
        word, a number after the last colon is the weight.

        Raises:
            BadInput: several datasets of which one has no weight, or as `Datasets`.
        """
        found = [_folder_and_weight(word) for word in words]
        bare = [folder for folder, weight in found if weight is None]
        if bare and len(found) > 1:
            example = " ".join(f"{folder}:{1 / len(found):.2g}" for folder, _ in found)
            raise BadInput(
                f"--data: {bare[0]} has no weight: several datasets of one run take weights, such as "
                f"--data {example}; or make one dataset of them with `hpcphotoz merge`"
            )
        return cls(
            tuple(folder for folder, _ in found),
            tuple(1.0 if weight is None else weight for _, weight in found),
        )

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.folders) > 1

    @property
    def given(self) -> str | dict[str, float]:
        """Plain values from which `of` makes the same."""
        if not self.several:
            return str(self.folders[0])
        return {str(folder): weight for folder, weight in zip(self.folders, self.weights, strict=True)}

    def __str__(self) -> str:
        if not self.several:
            return str(self.folders[0])
        return " ".join(
            f"{folder}:{weight:g}" for folder, weight in zip(self.folders, self.weights, strict=True)
        )

    def absolute(self) -> "Datasets":
        """The same with absolute paths, links not followed: those may differ between nodes."""
        return replace(self, folders=tuple(folder.absolute() for folder in self.folders))

    def resolve(self) -> "Datasets":
        """The same with absolute paths, links followed."""
        return replace(self, folders=tuple(folder.resolve() for folder in self.folders))

    def shares(self, global_batch: int) -> tuple[int, ...]:
        """Objects of each dataset in a global batch: the weights rounded to whole objects.

        Raises:
            BadInput: a dataset would have none.
        """
        shares = round_shares(self.weights, global_batch)
        for folder, weight, share in zip(self.folders, self.weights, shares, strict=True):
            if not share:
                part = weight / math.fsum(self.weights) if math.isfinite(math.fsum(self.weights)) else 0.0
                raise BadInput(
                    f"{folder}: weight {weight:g}, {part:.2g} of all, is less than one object of a global "
                    f"batch of {global_batch}: raise the weight or run.global_batch"
                )
        return shares

    def read_manifest(self, global_batch: int, check: bool = True) -> Manifest:
        """The manifest of the dataset, or that of several by `mixed_manifest`; raises BadInput as both."""
        manifests = [read_manifest(folder, check) for folder in self.folders]
        return self.mixed_manifest(manifests, global_batch)

    def mixed_manifest(self, manifests: Sequence[Manifest], global_batch: int) -> Manifest:
        """One manifest for several datasets: all shards, statistics with weights, one checksum; no columns.

        The checksum covers the datasets, their order and their shares, on which the order of the objects
        depends.
        Images of different storage are read as float32.

        Args:
            manifests: of the datasets; if there is one only, it is returned.
            global_batch: objects of a global batch.

        Raises:
            BadInput: bands, stamps or pixel scales differ.
        """
        if not self.several:
            return manifests[0]
        headers, shares = [manifest.header for manifest in manifests], self.shares(global_batch)
        first = replace(headers[0], storage="float32", extra=())
        for folder, header in zip(self.folders, headers, strict=True):
            if problem := replace(header, storage="float32", extra=()).difference(first):
                raise BadInput(
                    f"{folder}: {problem} in {self.folders[0]}: the datasets of a run have equal bands, "
                    "stamps and pixel scales"
                )
        storages = {header.storage for header in headers}
        moments = BandMoments(len(first.bands))
        for manifest, share in zip(manifests, shares, strict=True):
            moments.merge(BandMoments.from_statistics(manifest.statistics, share, first.stamp))
        shards = tuple(
            replace(shard, file=str(folder / shard.file))
            for folder, manifest in zip(self.folders, manifests, strict=True)
            for shard in manifest.shards
        )
        key = json.dumps([[m.sha256, share] for m, share in zip(manifests, shares, strict=True)])
        return Manifest(
            replace(first, storage=storages.pop() if len(storages) == 1 else "float32"),
            shards,
            moments.result(),
            {},
            hashlib.sha256(key.encode()).hexdigest(),
        )


def check_columns(folders: Sequence[Path], headers: Sequence[Header], names: Iterable[str]) -> None:
    """Refuse datasets in which an extra column of the selection has another type, unit or shape.

    Args:
        folders, headers: of the datasets.
        names: labels that `data.where` and `data.split_by` use.

    Raises:
        BadInput: names the column and the datasets.
    """
    for name in sorted(names):
        kinds = []
        for header in headers:
            found = [(c.dtype.rstrip("0123456789"), c.unit, c.shape) for c in header.extra if c.name == name]
            kinds.append(found[0] if found else None)
        for folder, kind in zip(folders, kinds, strict=True):
            if kind != kinds[0]:
                raise BadInput(
                    f"{folder}: column {name}, by which objects are selected, is of another type, unit "
                    f"or shape than in {folders[0]}"
                )


def _folder_and_weight(word: str) -> tuple[Path, float | None]:
    folder, colon, text = word.rpartition(":")
    if not Path(word).is_dir() and colon and folder:
        try:
            return Path(folder), float(text)
        except ValueError:
            pass  # a colon in a name: reading the dataset says that there is none
    return Path(word), None
