"""A rank batch is copied to the device without waiting for it."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.training import rank_batch
from hpcphotoz.training.rank_batch import make_rank_batch
from tests.helpers.training.steps import N, batch, configured

GPU = torch.device("cuda", 0)


def test_a_rank_batch_is_sent_to_a_gpu_without_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from memory that is not pinned would wait for the step before."""
    pinned = mock.Mock(side_effect=lambda tensor: tensor)
    copies: list[bool] = []
    copy = torch.Tensor.to

    def to(tensor: torch.Tensor, *given: object, **options: object) -> torch.Tensor:
        copies.append(bool(options.get("non_blocking")))
        return copy(tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned(tensor))
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(rank_batch, "_load_on", lambda kind: lambda images, unit, code: images)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.zeros(11, 3, 8, 8, device=GPU)
    make_rank_batch(replace(batch(), images=images), configured(augment=True), 0, 0)
    # Attacked and clean rows, object ids, and the symmetry of each image.
    assert pinned.call_count == len(copies) == 4 and all(copies)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16])
@pytest.mark.parametrize(("crop", "binning"), [(0, 4), (4, 1), (4, 2)])
def test_what_a_network_sees_is_turned_as_whole_images_are(
    dtype: torch.dtype, augment: bool, crop: int, binning: int
) -> None:
    stored = replace(batch(), images=batch().images.to(dtype))
    if dtype == torch.int16:
        unit = stored.sky_sigma / 32
        unit[::2, 1] *= -1  # some images, in one band, have bright pixels
        images = torch.randint(-32767, 32768, stored.images.shape, dtype=dtype)
        stored = replace(stored, images=images, image_unit=unit)
    whole, seen = (
        make_rank_batch(stored, configured(augment=augment, crop=c, binning=b), 3, 0).images
        for c, b in ((0, 1), (crop, binning))
    )
    part, edge = crop or 8, (8 - (crop or 8)) // 2
    side = part // binning
    assert seen.shape == (len(whole), 3, side, side)
    assert seen.is_contiguous(memory_format=torch.channels_last) and seen.dtype == torch.float32
    # Means of 16 pixels: float32 rounds the sum at the size of the pixels, which may cancel.
    size = float(whole.abs().max())
    middle = whole[..., edge : edge + part, edge : edge + part]
    mean = middle.reshape(-1, 3, side, binning, side, binning).mean((3, 5))
    torch.testing.assert_close(seen, mean, rtol=0, atol=1e-6 * size)


def test_a_rank_without_objects_sees_no_images() -> None:
    none = make_rank_batch(batch(0), configured(crop=4, binning=2), 0, 0)
    assert none.images.shape == (0, 3, 2, 2)


def test_numbers_of_several_datasets_are_keyed_by_their_own_key() -> None:
    """Object ids of two datasets may be equal; the keys of their random numbers are not."""
    alone = replace(batch(), images=torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
    other = replace(alone, random_key=torch.arange(7_000, 7_000 + N))
    same = replace(alone, object_id=torch.arange(7_000, 7_000 + N))
    by_id, by_key, wanted = (
        make_rank_batch(each, configured(augment=True), 1, 0) for each in (alone, other, same)
    )
    assert by_id.object_id.tolist() == alone.object_id.tolist()
    assert by_key.object_id.tolist() == list(range(7_000, 7_000 + N))
    assert by_key.catalogue_id.tolist() == by_id.catalogue_id.tolist() == alone.object_id.tolist()
    # The key chooses the symmetries as well.
    assert torch.equal(by_key.images, wanted.images) and not torch.equal(by_key.images, by_id.images)


def test_catalogue_ids_outlive_the_buffer_of_the_batch() -> None:
    given = batch()
    made, ids = make_rank_batch(given, configured(), 0, 0), given.object_id.tolist()
    given.object_id.zero_()  # the stream reuses its memory
    assert made.catalogue_id.tolist() == ids


@pytest.mark.parametrize("n", [1, 2, 4, 50])
def test_the_first_attacked_objects_keep_their_places(n: int) -> None:
    whole = make_rank_batch(batch(), configured(fraction=0.4), 0, 0)
    some = whole.first(n)
    m = min(n, len(whole.attacked))
    assert len(whole.attacked) == 4 and len(some.images) == m
    assert some.attacked.tolist() == list(range(m)) and len(some.clean) == 0
    assert some.positions.tolist() == whole.positions.tolist()[:m]
    rows = whole.attacked.tolist()[:m]
    assert torch.equal(some.images, whole.images[rows]) and torch.equal(some.z_spec, whole.z_spec[rows])
    assert some.object_id.tolist() == whole.object_id[rows].tolist() == some.catalogue_id.tolist()
    # Position p of the batch is object 99 + p: objects and places stay together.
    assert [id_ - 99 for id_ in some.catalogue_id.tolist()] == some.positions.tolist()


def test_the_first_of_a_batch_without_attacks_are_its_first_rows() -> None:
    whole = make_rank_batch(batch(), configured(fraction=0.0), 0, 0)
    some = whole.first(3)
    assert some.attacked.tolist() == [] and some.clean.tolist() == [0, 1, 2] and some.positions.tolist() == []
    assert some.catalogue_id.tolist() == [100, 101, 102] and torch.equal(some.images, whole.images[:3])


@pytest.mark.parametrize("binning", [1, 2])
def test_noise_is_in_sky_sigmas_and_keyed_by_epoch_and_object(binning: int) -> None:
    n = 400
    given = replace(batch(n), images=torch.zeros(n, 3, 8, 8))

    def noisy(of: Batch, epoch: int = 2, seed: int = 1) -> torch.Tensor:
        config = configured(noise=1.5, binning=binning, seed=seed)
        return make_rank_batch(of, config, epoch, 0).images

    made = noisy(given)
    assert made.is_contiguous(memory_format=torch.channels_last)
    # The mean of b x b pixels has a b-th of the noise; 400 x 16 pixels give its sigma within 1 %.
    spread = (made / given.sky_sigma[:, :, None, None]).std(dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.full((3,), 1.5 / binning), rtol=0.05, atol=0)
    rows = torch.tensor([7, 3])
    chosen: dict[str, Any] = {k: v[rows] for k, v in vars(given).items() if isinstance(v, torch.Tensor)}
    some = replace(given, **chosen)
    assert torch.equal(noisy(some), made[rows])
    for other in (noisy(given, epoch=3), noisy(given, seed=2)):
        assert not torch.isclose(other, made).all(dim=(1, 2, 3)).any()
    assert torch.equal(make_rank_batch(given, configured(binning=binning), 2, 0).images, 0 * made)
    assert noisy(batch(0)).shape == (0, 3, 8 // binning, 8 // binning)
