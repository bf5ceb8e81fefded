"""The symmetries of the square in plain torch."""

import torch

from hpcphotoz.kernels import reference


def test_dihedral_gives_the_eight_symmetries() -> None:
    image = torch.arange(12.0).reshape(1, 3, 2, 2)
    eight = reference.dihedral(image.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(t.flatten().tolist()) for t in eight}) == 8
    assert torch.equal(eight[0], image[0])
    assert torch.equal(eight[4], image[0].transpose(-1, -2))
    assert torch.equal(eight[3], image[0].rot90(2, (-2, -1)))
    assert all(torch.equal(t.sum((-1, -2)), image[0].sum((-1, -2))) for t in eight)
