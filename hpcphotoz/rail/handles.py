"""RAIL's data handles for images, for trained networks, and for PDFs that several ranks write."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import qp
from rail.core.data import ModelHandle, QPHandle, TableHandle

from hpcphotoz.errors import BadInput
from hpcphotoz.rail.ranks import GatheredFile, gathers
from hpcphotoz.rail.table import ImageTable, dataset_folder
from hpcphotoz.training.run.network import WEIGHTS_SUFFIX, TrainedNetwork, load_network, save_network


class ImageHandle(TableHandle):  # type: ignore[misc]
    """Images and labels: a dataset of hpcphotoz, or a table file that RAIL reads.

    The path is the folder of a dataset or its manifest: chunks are read from the shards, decoded to
    nanomaggies and checked. Any other path is left to `TableHandle`, which iterates over the arrays of one
    HDF5 file whose name ends in .hdf5; one shard is such a file.
    """

    interactive_type = "hpcphotoz.rail.table.ImageTable"

    @classmethod
    def _open(cls, path: str, **kwargs: Any) -> Any:
        folder = dataset_folder(path)
        return super()._open(path, **kwargs) if folder is None else ImageTable(folder)

    @classmethod
    def _read(cls, path: str, **kwargs: Any) -> Any:
        folder = dataset_folder(path)
        return super()._read(path, **kwargs) if folder is None else ImageTable(folder)

    @classmethod
    def _iterator(cls, path: str, **kwargs: Any) -> Iterable[Any]:
        folder = dataset_folder(path)
        return super()._iterator(path, **kwargs) if folder is None else _chunks(ImageTable(folder), kwargs)

    def _in_memory_iterator(self, **kwargs: Any) -> Any:
        if isinstance(self.data, ImageTable):
            return _chunks(self.data, kwargs)
        return super()._in_memory_iterator(**kwargs)

    def _size(self, path: str, **kwargs: Any) -> int:
        folder = dataset_folder(path)
        return super()._size(path, **kwargs) if folder is None else ImageTable(folder).rows

    def _data_size(self, data: Any, **kwargs: Any) -> int:
        return data.rows if isinstance(data, ImageTable) else super()._data_size(data, **kwargs)

    @classmethod
    def _check_data_columns(
        cls, path: str, columns_to_check: list[str], parent_groupname: str | None = None, **kwargs: Any
    ) -> None:
        folder = dataset_folder(path)
        if folder is None:
            super()._check_data_columns(path, columns_to_check, parent_groupname, **kwargs)
        elif missing := set(columns_to_check) - set(ImageTable(folder)):
            raise KeyError("The following columns are not found: ", missing)


class NetworkHandle(ModelHandle):  # type: ignore[misc]
    """A trained network as one safetensors file, its configuration in the header; nothing is unpickled."""

    suffix = WEIGHTS_SUFFIX.removeprefix(".")
    interactive_type = "hpcphotoz.training.run.network.TrainedNetwork"

    @classmethod
    def _open(cls, path: str, **kwargs: Any) -> TrainedNetwork:
        return cls._read(path, **kwargs)

    @classmethod
    def _read(cls, path: str, **kwargs: Any) -> TrainedNetwork:
        if Path(path).suffix in (".pkl", ".pickle"):
            name = Path(path).with_suffix(WEIGHTS_SUFFIX).name
            raise BadInput(
                f"{path}: models are no pickles here, which could run any code: give the file that "
                f"HpcPhotozInformer writes, such as {name}, or a run folder"
            )
        return load_network(path, trust_code=kwargs.get("trust_code", False))

    @classmethod
    def _write(cls, data: TrainedNetwork, path: str, **kwargs: Any) -> None:
        save_network(data, Path(path))


class GatheredQPHandle(QPHandle):  # type: ignore[misc]
    """A qp file to which several ranks write. Where h5py has no MPI, rank 0 writes the chunks of all."""

    @classmethod
    def _initialize_write(
        cls, data: qp.Ensemble, path: str, data_length: int, communicator: Any = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        if not gathers(communicator):
            return super()._initialize_write(data, path, data_length, communicator=communicator)  # type: ignore[no-any-return]
        groups, file = None, None
        if communicator.Get_rank() == 0:
            groups, file = super()._initialize_write(data, path, data_length)
        return groups, GatheredFile(communicator, file)

    @classmethod
    def _write_chunk(
        cls, data: qp.Ensemble, fileObj: Any, groups: Any, start: int, end: int, **kwargs: Any
    ) -> None:
        if not isinstance(fileObj, GatheredFile):
            return super()._write_chunk(data, fileObj, groups, start, end, **kwargs)  # type: ignore[no-any-return]
        tables = data.build_tables(encode=True, ext="hdf5")
        fileObj.write(start, end, {name: tables[name] for name in ("data", "ancil")})

    @classmethod
    def _finalize_write(cls, data: qp.Ensemble, fileObj: Any, **kwargs: Any) -> None:
        if not isinstance(fileObj, GatheredFile):
            return super()._finalize_write(data, fileObj, **kwargs)  # type: ignore[no-any-return]
        file = fileObj.finish()
        if file is not None:
            super()._finalize_write(data, file, **kwargs)


def _chunks(table: ImageTable, options: dict[str, Any]) -> Iterable[Any]:
    """The chunks of a table for the options of RAIL's iterators."""
    return table.chunks(options["chunk_size"], options.get("rank", 0), options.get("parallel_size", 1))
