"""The library in five functions: simulate a dataset, train a network, load it, open a dataset, attack it.

    import hpcphotoz as hp

    hp.simulate("galaxies", n=4096, seed=1)
    hp.simulate("test", n=512, seed=2)
    run = hp.train("adversarial", "galaxies", "run", epochs=10)
    network = hp.load(run)
    for batch in hp.open("test"):
        attacked = hp.attack(network, batch, eps=0.1)
        pdf = network.predict(attacked, batch.ebv)

In a notebook, datasets, batches, networks and PDFs show themselves as tables, and all but networks have
`plot()`. The command line does the same on more: predictions as files, reports, clusters.
"""

from hpcphotoz.api.dataset import Dataset, open
from hpcphotoz.api.networks import attack, load, train
from hpcphotoz.api.simulation import simulate
from hpcphotoz.api.stamp_batch import StampBatch

__all__ = ["Dataset", "StampBatch", "attack", "load", "open", "simulate", "train"]
