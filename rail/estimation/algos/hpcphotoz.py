"""Photometric redshifts from galaxy images: networks of hpcphotoz, trained adversarially if wanted.

The input is a dataset of hpcphotoz (a folder of HDF5 shards with a manifest), which is read in chunks and
never as a whole; the estimator takes any HDF5 file with columns `images` and `ebv` too.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

try:
    from ceci.config import StageParameter as Param
    from rail.core.common_params import SharedParams
    from rail.core.data import DataHandle, Hdf5Handle
    from rail.core.enums import DistributionType
    from rail.core.stage import RailStage
    from rail.estimation.estimator import CatEstimator
    from rail.estimation.informer import CatInformer
except ImportError as error:
    raise ImportError(f"{error}: the stages for RAIL need `pip install 'hpcphotoz[rail]'`") from error

from hpcphotoz import api
from hpcphotoz.config import load as configuration
from hpcphotoz.errors import BadInput
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.rail.chunk import ChunkEstimator, quick_collections
from hpcphotoz.rail.handles import GatheredQPHandle, ImageHandle, NetworkHandle
from hpcphotoz.rail.inputs import Description, UnreadInput, dataset_of, describe_input
from hpcphotoz.rail.ranks import chunk_for_all_ranks, ending_together, meet
from hpcphotoz.rail.table import ImageTable
from hpcphotoz.training.distributed.rank_device import choose_device
from hpcphotoz.training.run.network import WEIGHTS_SUFFIX, load_network
from hpcphotoz.world import World, detect

_DEVICE = Param(str, "auto", msg="cuda, cpu, or auto: a GPU where there is one")


def _with_default(name: str, value: object) -> Any:
    """Copy one of RAIL's shared parameters, with another default."""
    parameter = SharedParams.copy_param(name)
    parameter.set_default(value)
    return parameter


class HpcPhotozInformer(UnreadInput, CatInformer):  # type: ignore[misc]
    """Train a network on the images of a dataset

    The model is one safetensors file with the configuration in its header. The run folder beside it has
    checkpoints, logs and metrics; a stage that was stopped continues from it. Where the model is only
    returned (output_mode), the run folder is temporary. Under MPI all ranks train one network together.
    """

    name = "HpcPhotozInformer"
    entrypoint_function = "inform"
    interactive_function = "hpcphotoz_informer"
    inputs = [("input", ImageHandle)]
    outputs = [("model", NetworkHandle)]
    config_options = CatInformer.config_options.copy()
    config_options.update(
        hdf5_groupname=_with_default("hdf5_groupname", ""),
        recipe=Param(str, "standard", msg="name of a recipe, such as adversarial, or path of a TOML file"),
        training=Param(
            dict, {}, msg="options of the training by name, such as epochs; they replace the recipe's"
        ),
        run_folder=Param(str, "", msg="folder of the run; by default beside the model, named as it is"),
        device=_DEVICE.copy(),
    )

    def validate(self) -> None:
        """Check the recipe, the names of options and of the model, and that the input is a dataset."""
        configuration.load(self.config.recipe)
        configuration.named(self.config.training, f"{self.instance_name}: training")
        ImageTable(self._dataset())
        model = Path(self.get_output("model", final_name=True))
        if model.suffix != WEIGHTS_SUFFIX and self.config.output_mode != "return":
            name = model.with_suffix(WEIGHTS_SUFFIX)
            raise BadInput(f"{self.instance_name}: {model}: models are safetensors files: name it {name}")

    def run(self) -> None:
        """Train, or continue, and attach the network of the last step."""
        options, data = {"device": self.config.device, **self.config.training}, self._dataset()
        with self._run_folder() as run:
            meet(self.comm)
            api.train(self.config.recipe, data, run, **options)
            self.model = load_network(run, trust_code=True)  # the recipe names the network
        self.add_data("model", self.model)

    def _dataset(self) -> Path:
        handle = self.get_handle("input", allow_missing=True)
        return dataset_of(handle, self.instance_name, "training reads")

    @contextmanager
    def _run_folder(self) -> Iterator[Path]:
        if not self.config.run_folder and self.config.output_mode == "return" and self.comm is None:
            with tempfile.TemporaryDirectory(prefix="hpcphotoz-") as folder:
                yield Path(folder) / self.instance_name
            return
        beside = Path(self.get_output("model", final_name=True)).with_suffix("")
        run = Path(self.config.run_folder or beside)
        run.parent.mkdir(parents=True, exist_ok=True)
        yield run


class HpcPhotozEstimator(UnreadInput, CatEstimator):  # type: ignore[misc]
    """Estimate redshift PDFs from images with a trained network

    The PDFs are histograms over the network's redshift bins, with `zmode`, `zmean` and `zmedian` in the
    ancil, as the command `hpcphotoz predict` writes them. The grid of the shared options zmin, zmax and
    nzbins is that of the bins' centres, whatever is given. A chunk is what one rank holds in memory. A run
    folder serves as model too.
    """

    name = "HpcPhotozEstimator"
    entrypoint_function = "estimate"
    interactive_function = "hpcphotoz_estimator"
    inputs = [("model", NetworkHandle), ("input", ImageHandle)]
    outputs = [("output", GatheredQPHandle)]
    config_options = CatEstimator.config_options.copy()
    config_options.update(
        hdf5_groupname=_with_default("hdf5_groupname", ""),
        chunk_size=_with_default("chunk_size", 1024),
        redshift_col=_with_default("redshift_col", "z_spec"),
        trust_code=Param(
            bool,
            False,
            msg="import and call the package.module:factory that the model names; may do anything",
        ),
        tta=Param(bool, False, msg="average over the eight symmetries of an image, at eight times the cost"),
        device=_DEVICE.copy(),
    )

    def __init__(self, args: Any, **kwargs: Any) -> None:
        super().__init__(args, **kwargs)
        self._described: Description
        self._estimator: ChunkEstimator

    @classmethod
    def default_distribution_type(cls) -> DistributionType:
        """Return posterior: the prior is the redshift distribution of the training set."""
        return DistributionType.posterior

    def open_model(self, tag: str = "model", **kwargs: Any) -> Any:
        """Load the network from its file, or from a run folder, and put it on the device.

        Parameters
        ----------
        tag
            Input tag of the model

        **kwargs
            Should include `model`: a network, a path, or a handle

        Returns
        -------
        TrainedNetwork
            The network
        """
        given, trust_code = kwargs.get(tag), self.config.trust_code
        if isinstance(given, str) and os.path.isdir(os.path.expandvars(given)):
            kwargs[tag] = load_network(os.path.expandvars(given), trust_code=trust_code)
        elif trust_code and isinstance(given, str) and given != "None":
            given = kwargs[tag] = NetworkHandle(tag, path=given)
        if trust_code and isinstance(given, NetworkHandle):
            given.read(trust_code=True)
        super().open_model(tag, **kwargs)
        if self.model is None:
            raise BadInput(f"{self.instance_name}: no model: give the file of an HpcPhotozInformer")
        device = choose_device(World() if self.comm is None else detect(), self.config.device)
        if device.type == "cpu":
            keep_freed_memory()
        self.model.module.to(device)
        centres = self.model.bins.edges()[:-1] + self.model.bins.width / 2
        self.config.zmin, self.config.zmax = float(centres[0]), float(centres[-1])
        self.config.nzbins = len(centres)
        return self.model

    def validate(self) -> None:
        """Check that the input exists and has what is needed, and the size of the chunks."""
        if self.config.chunk_size < 1:
            raise BadInput(f"{self.instance_name}: chunk_size {self.config.chunk_size}: want 1 or more")
        handle = self.get_handle("input", allow_missing=True)
        self._described = describe_input(handle, self.config.hdf5_groupname, self.instance_name)

    def run(self) -> None:
        """Estimate chunk by chunk, each on the rank whose turn it is."""
        with ending_together(self.comm), quick_collections():
            self.validate()
            handle = self.get_handle("input")
            if isinstance(handle.data, ImageTable):  # read chunk by chunk instead of as one
                handle.path, handle.data = str(handle.data.folder), None
            self.config.chunk_size = chunk_for_all_ranks(
                self.config.chunk_size, self._described.rows, self.comm
            )
            super().run()

    def _initialize_run(self) -> None:
        super()._initialize_run()
        self._described.check(self.model)
        self._estimator = ChunkEstimator(
            self.model, self._described.rows, self.config.id_col, self.config.tta
        )

    def _process_chunk(self, start: int, end: int, data: Any, first: bool) -> None:
        self._do_chunk_output(self._estimator(data, start), start, end, first, data=data)

    def _finalize_run(self) -> None:
        chunks = [self._partial_output[key].ancil for key in sorted(self._partial_output)]
        super()._finalize_run()
        if len(chunks) > 1:  # qp.concatenate makes (N, 1) of what is (N,)
            ancil = self._output_handle.data.ancil
            for name in (name for name, values in chunks[0].items() if np.ndim(values) == 1):
                ancil[name] = ancil[name].ravel()


class HpcPhotozLabels(UnreadInput, RailStage):  # type: ignore[misc]
    """Write the labels of a dataset as one table, which RAIL's evaluators read as the truth

    The columns are `object_id`, `redshift` (NaN where it is unknown), `ebv`, `ra`, `dec` and the dataset's
    extra columns, in the order of the dataset and so of the estimator's PDFs. No image is read.
    """

    name = "HpcPhotozLabels"
    entrypoint_function = "__call__"
    interactive_function = "hpcphotoz_labels"
    inputs = [("input", ImageHandle)]
    outputs = [("output", Hdf5Handle)]
    config_options = RailStage.config_options.copy()
    parallel = False
    _FIXED = {"object_id": "object_id", "redshift": "z_spec", "ebv": "ebv", "ra": "ra", "dec": "dec"}

    def __call__(self, input_data: Any, **kwargs: Any) -> DataHandle:
        """Write the labels of a dataset as one table.

        Parameters
        ----------
        input_data : ImageTable
            The dataset

        Returns
        -------
        Hdf5Handle
            Handle of the table
        """
        self.set_data("input", input_data)
        self.run()
        self.finalize()
        handle = self.get_handle("output")
        if self.config.output_mode != "return":
            handle.read(force=True)
        return handle

    def run(self) -> None:
        """Write the labels shard by shard, or hold them if they are to be returned."""
        table = ImageTable(
            dataset_of(self.get_handle("input", allow_missing=True), self.instance_name, "reads")
        )
        if not table.rows:
            raise BadInput(f"{self.instance_name}: {table.folder} holds no objects")
        columns = {**{name: name for name in table.extra}, **self._FIXED}
        if self.config.output_mode == "return":
            self.add_data("output", {name: table[ours] for name, ours in columns.items()})
            return
        for start, end, found in table.labels(list(columns.values())):
            labels = {name: found[ours] for name, ours in columns.items()}
            if start == 0:
                handle = self.add_handle("output", data=labels)
                handle.initialize_write(table.rows)
            handle.set_data(labels, partial=True)
            handle.write_chunk(start, end)
        handle.finalize_write()


__all__ = ["HpcPhotozEstimator", "HpcPhotozInformer", "HpcPhotozLabels", "ImageHandle", "NetworkHandle"]
