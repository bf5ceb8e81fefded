"""Maps the columns of a FITS binary table into memory; images are columns of several axes (TDIM)."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.optional_imports import sources_extra


class TableColumns(Mapping[str, Any]):
    """Columns of a table; each is mapped when first used, and converted whole if the table scales it."""

    def __init__(self, path: Path, table: Any) -> None:
        self._path, self._table = path, table

    def __getitem__(self, name: str) -> Any:
        if name not in self._table.columns.names:
            raise KeyError(name)
        column = self._table.columns[name]
        if "P" in str(column.format) or "Q" in str(column.format):
            raise BadInput(f"{self._path}: column '{name}' has rows of different lengths: want one shape")
        return self._table.data[name]

    def unit(self, name: str) -> str:
        """Returns a column's TUNIT; "": it has none."""
        return str(self._table.columns[name].unit or "")

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.columns.names)

    def __len__(self) -> int:
        return len(self._table.columns.names)


@contextmanager
def open_fits_table(path: Path) -> Iterator[Mapping[str, Any]]:
    """Opens the first binary table of a FITS file; rows are read when they are used.

    Raises:
        BadInput: the file is truncated, not FITS or has no binary table, or astropy is not installed.
    """
    with sources_extra():
        from astropy.io import fits
        from astropy.io.fits.verify import VerifyError
        from astropy.utils.exceptions import AstropyWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        # A truncated file is only a warning to astropy.
        warnings.filterwarnings("error", ".*truncated", AstropyWarning)
        with ExitStack() as held:
            try:
                hdus = held.enter_context(fits.open(path, memmap=True))
                tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
            except (OSError, ValueError, TypeError, KeyError, AstropyWarning, VerifyError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise BadInput(f"{path}: not a readable FITS file ({reason}): fetch it again") from None
            if not tables:
                raise BadInput(
                    f"{path}: a FITS file without a binary table: want a column of images; a "
                    "survey's images are read by `ingest images`"
                )
            yield TableColumns(path, tables[0])
