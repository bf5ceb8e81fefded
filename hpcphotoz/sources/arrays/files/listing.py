"""Lists the columns of a file of arrays, and finds those that hold one band each."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.files.array_file import BAND, ArrayFile

_FILTERS = "ugrizyjhk"  # from the bluest on
_FILTER = re.compile(r"[a-z]s?|[a-z]\d+[a-z]*", re.IGNORECASE)  # g, Ks, W1, F090W


@dataclass(frozen=True)
class Column:
    """A column of a file, or columns that hold one band each, by one name with BAND in it."""

    name: str
    shape: tuple[int, ...]  # (N, ...), with an axis of bands after the first one where `bands` are given
    kind: str  # of the numpy type
    dtype: str
    bands: tuple[str, ...] = ()

    @property
    def plain(self) -> str:
        """The last part of the name, in lower case, of letters and digits alone, without the band."""
        last = self.name.replace(BAND, "").strip("/").split("/")[-1].lower()
        return "".join(letter for letter in last if letter.isalnum())

    @property
    def first(self) -> str:
        """The name of the column in the file; of several ones, of the first."""
        return self.name.replace(BAND, self.bands[0]) if self.bands else self.name

    def __str__(self) -> str:
        return f"{printable(self.name)} {self.dtype}{self.shape}"


def list_columns(path: Path, table: ArrayFile) -> tuple[list[Column], list[str]]:
    """Returns the columns of a file, and those that are not read, each with the reason."""
    columns, refused = [], []
    for name in table.names():
        try:
            found = table[name]
        except BadInput as error:
            refused.append(printable(str(error).removeprefix(f"{path}: ")))
            continue
        shape = tuple(int(n) for n in found.shape)
        columns.append(Column(name, shape, found.dtype.kind, str(found.dtype)))
    return columns, refused


def bands_apart(columns: Sequence[Column], not_bands: Collection[str]) -> list[Column]:
    """Returns what columns (N, y, x) of one shape and type hold together, if their names differ in one word.

    Bands with the names of filters are in the order of wavelengths, others in that of the columns. Where
    names may be read in two ways, as `sci_g`, `sci_r`, `err_g` and `err_r`, the band is the word of more
    values, or the shorter one. A whole name is that of a band only if it looks like a filter's.

    Args:
        columns: of a file.
        not_bands: words that are no bands, such as `image`.
    """
    alike: dict[tuple[str, tuple[int, ...], str], dict[str, Column]] = {}
    for one in columns:
        words = re.split(r"([\W_]+)", one.name) if len(one.shape) == 3 and one.kind in "fiu" else []
        for k in range(0, len(words), 2):
            name = "".join([*words[:k], BAND, *words[k + 1 :]])
            if name == BAND and not _FILTER.fullmatch(words[k]):
                continue
            alike.setdefault((name, one.shape, one.dtype), {})[words[k]] = one
    found: list[Column] = []
    used: set[str] = set()
    for (name, shape, dtype), members in sorted(
        alike.items(), key=lambda item: (-len(item[1]), len("".join(item[1])))
    ):
        names = {one.name for one in members.values()}
        if len(members) < 2 or names & used or any(word.lower() in not_bands for word in members):
            continue
        used |= names
        bands = tuple(sorted(members, key=lambda band: _FILTERS.find(band.lower())))
        kind = members[bands[0]].kind
        found.append(Column(name, (shape[0], len(bands), *shape[1:]), kind, dtype, bands))
    return found


def printable(text: str) -> str:
    """Returns a name with ? in place of what a terminal would not print."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
