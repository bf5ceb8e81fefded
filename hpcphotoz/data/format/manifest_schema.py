"""The parts of `manifest.json`, with the strict types and ranges that pydantic checks where one is read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
)

from hpcphotoz.data.format.extra import ExtraColumn

Count = Annotated[StrictInt, Field(ge=1, lt=2**62)]
NonNegative = Annotated[StrictInt, Field(ge=0, lt=2**62)]
_MAX_DEPTH = 64  # of provenance; each attacked copy of a dataset is a few levels deeper than its source


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("want printable text")
    return text


Text = Annotated[str, Field(strict=True, min_length=1, max_length=200), AfterValidator(_printable)]
Number = Annotated[StrictFloat, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]
Sigma = Annotated[Number, Field(ge=0)]


_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard's entry in the manifest: file, size, redshift range, offsets and checksums."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    file: Text
    rows: Count
    bytes: Count
    sha256: Text
    z_min: Number | None  # smallest known z_spec; None: none known
    z_max: Number | None
    unlabelled: NonNegative  # rows whose z_spec is unknown
    offsets: dict[Text, NonNegative] | None = None  # first byte of each array; None: ask HDF5
    labels_xxh3: Text | None = None  # of all arrays except the images, see `label_digest`; None: unknown
    ids_xxh3: Text | None = None  # of object_id alone, which decides on the split
    chunk_rows: Count = 1  # images that are compressed together


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of each band over the whole dataset, in nanomaggies."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    mean: tuple[Number, ...]
    std: tuple[Sigma, ...]
    sky_sigma: tuple[Sigma, ...]  # mean of the objects' sky sigmas


class ManifestModel(BaseModel):
    """The whole file except the shards."""

    model_config = _STRICT

    format: Literal["hpcphotoz-shards"]
    version: Literal[1, 2, 3]
    rows: NonNegative
    flux_unit: Literal["nanomaggy"]
    bands: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)]
    stamp: Annotated[StrictInt, Field(ge=1, le=1 << 14)]
    pixel_scale: Annotated[Number, Field(gt=0)]
    storage: Literal["float32", "float16", "int16"] = "float32"
    extra: tuple[ExtraColumn, ...] = ()
    statistics: BandStatistics
    provenance: dict[str, Any]


_SHARD_ENTRY = TypeAdapter(ShardEntry)


def validate_manifest(tree: Mapping[str, Any]) -> ManifestModel:
    """Validate everything except the shards.

    Raises:
        ValueError: one line with the first thing that is wrong.
    """
    found: ManifestModel = _validate(ManifestModel.model_validate, tree, "the file")
    sizes = {len(found.statistics.mean), len(found.statistics.std), len(found.statistics.sky_sigma)}
    if sizes != {len(found.bands)}:
        raise ValueError(f"statistics: want one figure for each of the {len(found.bands)} bands")
    if len(set(found.bands)) < len(found.bands):
        raise ValueError("bands: one is there twice")
    if found.rows and not min(found.statistics.sky_sigma) > 0:
        raise ValueError("statistics.sky_sigma: must be above 0")
    if bool(found.extra) != (found.version == 3):
        raise ValueError(
            f"version {found.version}: 3 stands for extra columns, of which there are {len(found.extra)}"
        )
    _check_depth(found.provenance, _MAX_DEPTH)
    return found


def validate_entries(lines: Any) -> Iterator[ShardEntry]:
    """Yield validated shard entries, each removed from the list first: a survey's take 20 MB.

    Raises:
        ValueError: one line with the first thing that is wrong.
    """
    if not isinstance(lines, list):
        raise ValueError("shards: want a list")
    lines.reverse()
    number = 0
    while lines:
        yield _validate(_SHARD_ENTRY.validate_python, lines.pop(), f"shards.{number}")
        number += 1


def _check_depth(value: Any, left: int) -> None:
    """Refuse values nested so deep that copying them would meet Python's recursion limit."""
    if not left:
        raise ValueError(f"provenance: more than {_MAX_DEPTH} levels deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, dict | list):
            _check_depth(item, left - 1)


def _validate(check: Callable[[Any], Any], tree: Any, what: str) -> Any:
    try:
        return check(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{what}{'.' if where else ''}{where}: {first['msg']}") from None
