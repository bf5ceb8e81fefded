"""Finds objects at one place on the sky: epochs, deblended children and repeated rows of a catalogue."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import atomic_write
from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.groups import has_position
from hpcphotoz.errors import BadInput
from hpcphotoz.progress import track

Array = npt.NDArray[Any]
MAX_ARCSEC = 3600.0
MAX_PAIRS = 20_000_000  # 80 bytes each at the peak
_LABELS = {"object_id": np.int64, "ra": np.float64, "dec": np.float64, "z_spec": np.float32}
_FIRST = 10  # pairs that are listed
_HEADER = "object_id,group"
_ROWS = 1 << 17  # written together


@dataclass(frozen=True)
class Duplicates:
    """Pairs of objects closer than a separation, and the groups that they form."""

    arcsec: float
    object_id: Array  # (N,) int64, of all objects, in stored order
    z_spec: Array  # (N,) float32, NaN: unknown
    pairs: Array  # (P, 2) int64: places in stored order, ascending
    separation: Array  # (P,) float64, arcsec
    group: Array  # (N,) int64: the smallest id among the objects that pairs connect, or that have one id
    unplaced: int  # objects of unknown position, which are in no pair

    def facts(self) -> dict[str, Any]:
        """The numbers and the first pairs, JSON-serialisable."""
        groups, sizes = np.unique(self.group, return_counts=True)
        large = Counter(sizes[sizes > 1].tolist())
        first = [
            {
                "object_id": self.object_id[pair].tolist(),
                "arcsec": float(separation),
                "delta_z": _difference(*self.z_spec[pair].tolist()),
            }
            for pair, separation in zip(self.pairs[:_FIRST], self.separation[:_FIRST], strict=True)
        ]
        return {
            "arcsec": self.arcsec,
            "pairs": len(self.pairs),
            "groups": sum(large.values()),
            "objects_in_groups": sum(size * n for size, n in large.items()),
            "group_sizes": {str(size): large[size] for size in sorted(large)},
            "objects_without_position": self.unplaced,
            "first_pairs": first,
        }

    def write_groups(self, path: Path) -> None:
        """Write every object's id and group as CSV, whole or not at all.

        The group of an object that is alone is its own id: a split by this column treats it as today's.
        """
        ids, place = np.unique(self.object_id, return_index=True)
        groups = self.group[place]
        with atomic_write(path) as temporary, temporary.open("w") as file:
            file.write(f"{_HEADER}\n")
            for first in range(0, len(ids), _ROWS):
                rows = zip(
                    ids[first : first + _ROWS].tolist(), groups[first : first + _ROWS].tolist(), strict=True
                )
                file.write("".join(f"{one},{group}\n" for one, group in rows))


def check_groups_file(path: Path) -> None:
    """Refuse to overwrite a file that is no table of groups.

    Raises:
        BadInput: it is something else.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_HEADER) + 1) != f"{_HEADER}\n".encode():
                raise BadInput(f"{path}: exists and holds no groups: choose another name")


def find_duplicates(folder: Path, manifest: Manifest, arcsec: float) -> Duplicates:
    """Find all pairs of objects closer than a separation, by a k-d tree of their unit vectors.

    Memory: all labels named here and the tree, some 100 bytes an object, and 80 bytes a pair.

    Args:
        folder, manifest: of the dataset.
        arcsec: separation, above 0 and at most MAX_ARCSEC.

    Raises:
        BadInput: a separation out of range, no object of known position, more than MAX_PAIRS pairs, a shard
            that cannot be read, or scipy is not installed.
    """
    if not 0 < arcsec <= MAX_ARCSEC:
        raise BadInput(f"{arcsec:g} arcsec: must be above 0 and at most {MAX_ARCSEC:g}")
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    except ImportError as error:
        raise BadInput(f"{error}: duplicates need `pip install 'hpcphotoz[sources]'`") from None
    labels = _read_labels(folder, manifest)
    placed = has_position(labels["ra"], labels["dec"])
    if not placed.any():
        raise BadInput(
            f"{folder}: no object has a position, by which duplicates are found: ingest it with ra and dec, "
            "which `ingest arrays` takes from the columns that its map names"
        )
    pairs, separation = _close_pairs(labels["ra"][placed], labels["dec"][placed], arcsec)
    pairs = np.flatnonzero(placed)[pairs]
    ids = labels["object_id"]
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)  # one object in two shards
    a, b = np.r_[pairs[:, 0], order[same]], np.r_[pairs[:, 1], order[same + 1]]
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(ids), len(ids)))
    count, component = connected_components(graph, directed=False)
    smallest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(smallest, component, ids)
    unplaced = len(ids) - int(np.count_nonzero(placed))
    return Duplicates(arcsec, ids, labels["z_spec"], pairs, separation, smallest[component], unplaced)


def _close_pairs(ra: Array, dec: Array, arcsec: float) -> tuple[Array, Array]:
    """Pairs (P, 2) of objects of known position closer than a separation, ascending, and theirs (P,)."""
    from scipy.spatial import cKDTree

    if len(ra) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    # Split at midpoints: medians cost more, and where many positions are equal very much more.
    tree = cKDTree(unit_vectors(ra, dec), balanced_tree=False)
    chord = 2 * np.sin(np.radians(arcsec / 3600) / 2)
    reach = chord * (1 + 1e-9) + 1e-15  # a little more: the exact comparison is of the angle
    # Counted first: a million placeholders at one place would be 5e11 pairs.
    expected = (int(tree.count_neighbors(tree, reach)) - len(ra)) // 2
    if expected > MAX_PAIRS:
        raise BadInput(
            f"{expected} pairs of objects are closer than {arcsec:g} arcsec, at most {MAX_PAIRS} can be "
            "listed: choose a smaller separation, or look for positions that many objects share"
        )
    pairs = tree.query_pairs(reach, output_type="ndarray")
    vectors = np.asarray(tree.data)
    length = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    separation = np.degrees(2 * np.arcsin(np.minimum(length / 2, 1))) * 3600
    keep = np.flatnonzero(separation < arcsec)
    keep = keep[np.lexsort((pairs[keep, 1], pairs[keep, 0]))]
    return pairs[keep], separation[keep]


def unit_vectors(ra: Array, dec: Array) -> Array:
    """Positions on the unit sphere, (N, 3): without seam at ra = 0, and exact at the poles."""
    lon, lat = np.radians(ra), np.radians(dec)
    vectors = np.empty((len(ra), 3))
    vectors[:, 0], vectors[:, 1] = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon)
    vectors[:, 2] = np.sin(lat)
    return vectors


def _read_labels(folder: Path, manifest: Manifest) -> dict[str, Array]:
    files, end = ShardFiles(folder, manifest), 0
    found = {name: np.empty(manifest.rows, dtype) for name, dtype in _LABELS.items()}
    numbers = range(len(manifest.shards))
    for number in track(numbers, "reading positions (shards)", len(numbers)):
        start, end = end, end + manifest.shards[number].rows
        block = Blocks.single(number, 0, end - start)
        for name, values in files.columns(block, _LABELS).items():
            found[name][start:end] = values
    return found


def _difference(a: float, b: float) -> float | None:
    """The difference of two redshifts; None: one is unknown."""
    return b - a if np.isfinite(a) and np.isfinite(b) else None
