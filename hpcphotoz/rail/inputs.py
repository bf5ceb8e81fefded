"""What a RAIL stage is given: inputs that are not read whole, and checks before anything is computed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcphotoz.data import hdf5
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.evaluation.network import check_bands_and_stamp
from hpcphotoz.rail.handles import ImageHandle
from hpcphotoz.rail.table import ImageTable, dataset_folder
from hpcphotoz.training.run.network import TrainedNetwork


class UnreadInput:
    """A stage that does not read its whole input when it is given a handle or a path."""

    def set_data(self, tag: str, data: Any, path: str | None = None, do_read: bool = True) -> Any:
        """Attach data to a tag, as `RailStage.set_data`; the input is not read.

        Parameters
        ----------
        tag
            Tag of an input or output

        data
            Data, or a handle of them; of the input, the path of a dataset too

        path
            Path of the data

        do_read
            Whether data of other tags are read

        Returns
        -------
        Any
            The data, None where they are not read
        """
        if tag == "input" and isinstance(data, str | os.PathLike):
            data = ImageHandle(tag, path=os.fspath(data))
        return super().set_data(tag, data, path, do_read and tag != "input")  # type: ignore[misc]


def dataset_of(handle: Any, who: str, why: str) -> Path:
    """The folder of the dataset that a handle has, as path or as `ImageTable`.

    Args:
        handle: an `ImageHandle`.
        who: name of the stage.
        why: what it needs a dataset for; both begin the error message.

    Raises:
        BadInput: it has a single file or a table in memory, or nothing.
    """
    if isinstance(handle.data, ImageTable):
        return handle.data.folder
    path = "a table in memory" if handle.data is not None else path_of(handle)
    folder = None if path is None or handle.data is not None else dataset_folder(path)
    if folder is None:
        want = "name its folder; `hpcphotoz ingest` makes one"
        raise BadInput(f"{who}: {why} a dataset, not {path or 'nothing'}: {want}")
    return folder


def path_of(handle: Any) -> str | None:
    """The path of a handle, its environment variables replaced; None: it has none."""
    return None if handle.path in (None, "None", "none") else os.path.expandvars(handle.path)


@dataclass(frozen=True)
class Description:
    """What an input says of itself, without an image being read; None where it does not say."""

    where: str
    rows: int
    bands: tuple[str, ...] | None = None
    stamp: int | None = None  # pixels a side
    pixel_scale: float | None = None  # arcsec

    def check(self, network: TrainedNetwork) -> None:
        """Raise BadInput for other bands, another stamp size or pixel scale than the network takes."""
        bands, stamp = self.bands or network.bands, self.stamp or network.stamp
        header = Header(bands, stamp, self.pixel_scale or network.pixel_scale)
        check_bands_and_stamp(network, header, self.where)


def describe_input(handle: Any, group: str, who: str) -> Description:
    """Describe the input of a stage; replaces environment variables in the handle's path.

    Args:
        handle: an `ImageHandle`.
        group: HDF5 group of the columns of a single file; "": the file itself.
        who: name of the stage, for the message.

    Raises:
        BadInput: no input, no objects, no such file or folder, a file that is not HDF5, or one whose columns
            are missing or of unequal length.
    """
    path = path_of(handle)
    if handle.data is not None:
        found = _describe_table(handle, group, who)
    elif path is None:
        raise BadInput(f"{who}: no input: give the folder of a dataset, a file *.hdf5, or a table in memory")
    elif (folder := dataset_folder(path)) is not None:
        handle.path, found = path, _describe_dataset(ImageTable(folder))
    else:
        handle.path, found = path, _describe_file(Path(path), group, who)
    if found.rows == 0:
        raise BadInput(f"{who}: {found.where} holds no objects")
    return found


def _describe_table(handle: Any, group: str, who: str) -> Description:
    if isinstance(handle.data, ImageTable):
        return _describe_dataset(handle.data)
    if not hasattr(handle.data, "keys"):
        kind = type(handle.data).__name__
        raise BadInput(f"{who}: the input is a {kind}: want a table, or the path of a dataset")
    return Description("the table in memory", int(handle.data_size(groupname=group)))


def _describe_dataset(table: ImageTable) -> Description:
    header = table.manifest.header
    return Description(str(table.folder), table.rows, header.bands, header.stamp, header.pixel_scale)


def _describe_file(path: Path, group: str, who: str) -> Description:
    """Attributes and columns of one HDF5 file, such as a shard."""
    if not path.is_file():
        raise BadInput(f"{who}: {path}: no such file or folder")
    if path.suffix != ".hdf5":
        only = "RAIL reads images only from files named *.hdf5"
        raise BadInput(f"{who}: {path}: {only}: rename it, or give the folder of a dataset")
    try:
        with hdf5.open_file(path) as file:
            columns = file.get(group) if group else file
            if not isinstance(columns, h5py.Group):
                raise BadInput(f"{path}: has no group '{group}', only {', '.join(file)}: set hdf5_groupname")
            shapes = {name: data.shape for name, data in columns.items() if isinstance(data, h5py.Dataset)}
            bands, scale = hdf5.text_attribute(file, "bands"), hdf5.attribute(file, "pixel_scale")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read as HDF5: {first_line(error)}") from None
    for name in ("images", "ebv"):
        if name not in shapes:
            raise BadInput(f"{path}: has no column '{name}', only {', '.join(sorted(shapes)) or 'groups'}")
    images, ebv = shapes["images"], shapes["ebv"]
    if len(images) != 4 or images[2] != images[3]:
        raise BadInput(f"{path}: images of shape {images}: want (objects, bands, y, x), square")
    if ebv != images[:1]:
        raise BadInput(f"{path}: ebv of shape {ebv} for {images[0]} images")
    known = np.ndim(scale) == 0 and np.asarray(scale).dtype.kind in "iuf" and scale > 0
    return Description(str(path), images[0], bands, images[2], float(scale) if known else None)
