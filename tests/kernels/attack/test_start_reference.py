"""Random starts in plain torch, and their numbers: those of the published generator, keyed by object."""

import torch

from hpcphotoz.kernels.attack import start_reference as reference


def test_start_is_uniform_in_the_ball_and_then_in_the_bounds() -> None:
    x0, object_id, key = torch.zeros(2, 1, 3, 4), torch.tensor([3, 2**40]), torch.tensor([1, 2])
    u = reference.uniform(x0.shape, object_id, key)
    given = x0, object_id, torch.tensor([0.5])
    for lo, hi in ((-torch.inf, torch.inf), (-0.25, 0.125)):
        found = reference.start(*given, torch.tensor([lo]), torch.tensor([hi]), key)
        assert torch.equal(found, (0.5 * u).clamp(lo, hi))


def test_philox_matches_the_published_vectors() -> None:
    # The known answers of Random123 1.14 for philox4x32-10: all zeros, all ones, digits of pi.
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    for counter, key, answer in (
        ((0,) * 4, (0,) * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (*pi, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        c0, c1, c2, c3 = torch.tensor(counter)
        k0, k1 = torch.tensor(key)
        assert [int(word) for word in reference.philox((c0, c1, c2, c3), (k0, k1))] == answer


def test_uniform_uses_the_words_of_philox_in_the_order_of_the_pixels() -> None:
    object_id, key = torch.tensor([2**40 + 3]), torch.tensor([2**33 + 1, 4])
    u = reference.uniform(torch.Size((1, 2, 3, 1)), object_id, key).flatten()
    for i in range(6):
        counter = torch.tensor(i // 4), torch.tensor(3), torch.tensor(2**8), torch.tensor(4)
        word = reference.philox(counter, (torch.tensor(1), torch.tensor(2)))[i % 4]
        assert u[i].item() == (int(word) >> 8) / 2**23 - 1


def test_uniform_belongs_to_the_object_not_to_its_place() -> None:
    ids = torch.tensor([5, 2**40 + 3, -7])
    shape, key = torch.Size((3, 5, 4, 3)), torch.tensor([2**33 + 1, 4])
    u = reference.uniform(shape, ids, key)
    for k in (2, 0, 1):
        assert torch.equal(reference.uniform(torch.Size((1, 5, 4, 3)), ids[k : k + 1], key)[0], u[k])
    for other in ([1, 4], [2**33 + 1, 5]):
        assert not torch.equal(reference.uniform(shape, ids, torch.tensor(other)), u)
    assert torch.unique(u).numel() > 0.99 * u.numel()


def test_uniform_is_uniform() -> None:
    u = reference.uniform(torch.Size((64, 1000)), torch.arange(64), torch.tensor([0, 0]))
    assert u.min() >= -1 and u.max() < 1
    # Standard errors of mean and variance at 64,000 numbers: 0.0023 and 0.0012; five of each allowed.
    assert abs(u.mean()) < 0.012 and abs(u.var() - 1 / 3) < 0.006
    assert abs((u[:, 1:] * u[:, :-1]).mean()) < 0.007
