"""Random numbers keyed by object, and the symmetries of the square."""

import torch

from hpcphotoz.kernels import reference


def test_philox_matches_the_published_vectors() -> None:
    # Known answers of Random123 1.14 for philox4x32-10: all zeros, all ones.
    def words(counter: int, key: int) -> list[int]:
        c = torch.tensor([counter])
        return [int(w[0]) for w in reference.philox((c, c, c, c), (key, key))]

    assert words(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert words(ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_uniform_belongs_to_the_object_not_to_its_place() -> None:
    ids = torch.tensor([5, 2**40 + 3, -7])
    shape = torch.Size((3, 5, 4, 3))
    u = reference.uniform(shape, ids, seed=2**33 + 1, epoch=4)
    for k in (2, 0, 1):
        alone = reference.uniform(torch.Size((1, 5, 4, 3)), ids[k : k + 1], seed=2**33 + 1, epoch=4)
        assert torch.equal(alone[0], u[k])
    for other in (dict(seed=1, epoch=4), dict(seed=2**33 + 1, epoch=5)):
        assert not torch.equal(reference.uniform(shape, ids, **other), u)
    assert torch.unique(u).numel() > 0.99 * u.numel()


def test_uniform_is_uniform() -> None:
    u = reference.uniform(torch.Size((64, 1000)), torch.arange(64), 0, 0)
    assert u.min() >= -1 and u.max() < 1
    # Standard errors of mean and variance at 64,000 numbers: 0.0023 and 0.0012; five of each allowed.
    assert abs(u.mean()) < 0.012 and abs(u.var() - 1 / 3) < 0.006
    assert abs((u[:, 1:] * u[:, :-1]).mean()) < 0.007


def test_dihedral_gives_the_eight_symmetries() -> None:
    image = torch.arange(12.0).reshape(1, 3, 2, 2)
    eight = reference.dihedral(image.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(t.flatten().tolist()) for t in eight}) == 8
    assert torch.equal(eight[0], image[0])
    assert torch.equal(eight[4], image[0].transpose(-1, -2))
    assert torch.equal(eight[3], image[0].rot90(2, (-2, -1)))
    assert all(torch.equal(t.sum((-1, -2)), image[0].sum((-1, -2))) for t in eight)
