"""A loaded network: the PDFs that it predicts, and what it shows of itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpcphotoz
from hpcphotoz.errors import BadInput

NAN, X = torch.nan, torch.zeros(2, 5, 16, 16)


def test_predict_takes_arrays_of_any_numbers_and_any_length(run: Path, dataset: Path) -> None:
    network = hpcphotoz.load(run, device="cpu")
    batch = hpcphotoz.open(dataset, device="cpu")[:]
    pdf = network.predict(batch.images, batch.ebv)
    np.testing.assert_allclose(pdf.pdf, network.pdf(batch.images, batch.ebv).numpy(), atol=1e-6)
    assert pdf.bins == network.bins and pdf.pdf.dtype == np.float32
    for kind in ("<f4", ">f4", "<f8", ">f8"):
        images = np.asfortranarray(batch.images.numpy().astype(kind))
        again = network.predict(images, batch.ebv.numpy().astype(kind))
        np.testing.assert_array_equal(again.pdf, pdf.pdf)
    for dtype in (torch.float64, torch.float32):
        again = network.predict(batch.images.to(dtype), batch.ebv.to(dtype))
        np.testing.assert_array_equal(again.pdf, pdf.pdf)
    np.testing.assert_array_equal(network.predict(batch.images, batch.ebv.tolist()).pdf, pdf.pdf)
    one = network.predict(batch.images, torch.full_like(batch.ebv, 0.02))
    np.testing.assert_array_equal(network.predict(batch.images, 0.02).pdf, one.pdf)
    number: Any = np.float32(0.02)
    np.testing.assert_array_equal(network.predict(batch.images, number).pdf, one.pdf)
    np.testing.assert_array_equal(network.predict(batch).pdf, pdf.pdf)
    whole = network.predict(hpcphotoz.open(dataset, device="cpu", batch=20))
    np.testing.assert_allclose(whole.pdf, pdf.pdf, atol=1e-6)
    with pytest.raises(BadInput, match="a StampBatch: want .* without"):
        network.predict(batch, batch.ebv)
    with pytest.raises(BadInput, match="a batch of .*, but run 'run' takes bands"):
        network.predict(replace(batch, bands=tuple("zirgu")))
    many = network.predict(batch.images.repeat(8, 1, 1, 1), batch.ebv.repeat(8))  # more than one pass
    np.testing.assert_allclose(many.pdf, np.tile(pdf.pdf, (8, 1)), atol=1e-6)
    assert len(network.predict(batch.images[:0], batch.ebv[:0])) == 0


@pytest.mark.parametrize(
    ("images", "ebv", "said"),
    [
        (X.numpy()[:, :4], np.zeros(2), r"predict: images of shape \(2, 4, 16, 16\)"),
        (X.numpy(), np.zeros(3), r"predict: ebv of shape \(3,\)"),
        (X.numpy(), np.array([0, NAN]), "predict: object 1: nan in ebv"),
        (np.full((2, 5, 16, 16), 1e300), np.zeros(2), "predict: object 0: inf in images: must be finite"),
        (X.numpy().astype(complex), np.zeros(2), "predict: images of type complex128: want real numbers"),
        (X.numpy(), np.array(["a", "b"]), "predict: ebv of type <U1: want real numbers"),
        (X.to(torch.complex64), torch.zeros(2), "predict: images of type torch.complex64: want real"),
        (X, None, "predict: ebv is missing: give"),
        (3.0, None, "predict: images: a float: want a tensor or an array, with ebv, or a batch"),
        ([X], None, r"predict: a batch of Tensor, but run 'run' takes bands"),
        (X, [[0], [0, 1]], "predict: ebv: a list of unequal lengths"),
        (X, "0.1", "predict: ebv: a str: want a tensor or an array"),
        (X[0], torch.zeros(1), r"predict: images of one object, .5, 16, 16.: give a batch, images.None."),
        (X.numpy()[0], np.zeros(1), r"predict: images of one object"),
        (X.numpy() + NAN, np.zeros(2), "predict: object 0: nan in images: must be finite"),
        (X, ["a", "b"], "predict: ebv of type <U1: want real numbers"),
    ],
)
def test_predict_refuses_what_does_not_suit_the_network(run: Path, images: Any, ebv: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        hpcphotoz.load(run, device="cpu").predict(images, ebv)


def test_predict_names_the_object_of_a_later_pass(run: Path) -> None:
    network = hpcphotoz.load(run, device="cpu")
    images = np.zeros((300, 5, 16, 16))
    images[290, 0, 0, 0] = NAN
    with pytest.raises(BadInput, match="object 290: nan in images"):
        network.predict(images, np.zeros(300))


def test_a_network_shows_what_it_takes(run: Path) -> None:
    network = hpcphotoz.load(run, device="cpu")
    said = "compact, bands u g r i z, stamps of 16 x 16 pixels, 20 bins on [0, 0.4), cpu"
    assert repr(network) == f"<TrainedNetwork 'run': {said}>"
    page = replace(network, name="<run>")._repr_html_()
    assert "&lt;run&gt;" in page and "<run>" not in page and "pgd, eps" in page
