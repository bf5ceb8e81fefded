"""Streams of several datasets: composition, order, exactly once a pass, on any number of ranks."""

import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.config import Data
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.stream.mixture import MixedStream, open_training_stream, open_validation_stream
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World
from tests.helpers.data.streams import flip_byte, ids
from tests.helpers.datasets import make_stamps, write_stamps

OPTIONS = Data(block_rows=4, window_blocks=3, validation=0)
N = (37, 23)  # objects of the two datasets
BATCH, SHARES = 16, (11, 5)
STEPS = 30
Seen = dict[int, dict[int, tuple[int, int, bytes]]]  # step, position: id, random key, pixels


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    """Two datasets; ids of the first begin at 0, those of the second at 2^32."""
    folder = tmp_path_factory.mktemp("two")
    folders = [write_stamps(folder / "ab"[k], make_stamps(n, seed=k)) for k, n in enumerate(N)]
    return Datasets(tuple(folders), (0.7, 0.3))


def mixed(datasets: Datasets, rank: int = 0, size: int = 1, options: Data = OPTIONS) -> MixedStream:
    world = World(rank, size, rank, size)
    return MixedStream(datasets, options, global_batch=BATCH, seed=1, world=world)


def seen(datasets: Datasets, size: int, first: int = 0, last: int = STEPS) -> Seen:
    """What ranks see, by step and position; every position at most once."""
    found: Seen = defaultdict(dict)
    for rank in range(size):
        for step, batch in enumerate(mixed(datasets, rank, size).steps(first, last), first):
            assert batch.random_key is not None and batch.size == BATCH
            columns = batch.position, batch.object_id, batch.random_key
            rows = zip(*(column.tolist() for column in columns), batch.images.numpy(), strict=True)
            for position, number, key, image in rows:
                assert position not in found[step]
                found[step][position] = number, key, image.tobytes()
    return found


def by_dataset(found: Seen) -> list[list[list[int]]]:
    """The ids of each dataset, step by step."""
    each = [[n for n, _, _ in found[step].values()] for step in sorted(found)]
    return [[[n for n in step if (n >> 32) == k] for step in each] for k in (0, 1)]


def test_every_batch_holds_the_shares_and_every_pass_every_object_once(two: Datasets) -> None:
    for k, steps in enumerate(by_dataset(seen(two, 1))):
        assert {len(step) for step in steps} == {SHARES[k]}
        # Step by step: the objects of a part are in no order, but passes change at known places.
        left: Counter[int] = Counter()
        want = set((make_stamps(N[k], seed=k).object_id).tolist())
        for step in steps:
            left.update(step)
            assert max(left.values()) - min(left[i] for i in want) <= 1, (
                "an object again before all were seen"
            )
        passes = len(steps) * SHARES[k] // N[k]
        assert set(left) == want and min(left.values()) >= passes >= 3


def test_each_pass_has_another_order(two: Datasets) -> None:
    for k, steps in enumerate(by_dataset(seen(two, 1))):
        flat = [set(step) for step in steps]
        per_pass = N[k] // SHARES[k]
        assert flat[:per_pass] != flat[per_pass : 2 * per_pass]
        assert not any(step in flat[:per_pass] for step in flat[per_pass + 1 : 2 * per_pass])


@pytest.mark.parametrize("size", [2, 3, 5, 17])
def test_ranks_together_see_what_one_rank_sees(two: Datasets, size: int) -> None:
    assert seen(two, size) == seen(two, 1)


@pytest.mark.parametrize("first", [1, 3, 4, 7, 29])
def test_it_continues_at_any_step_on_another_number_of_ranks(two: Datasets, first: int) -> None:
    whole = seen(two, 1)
    assert seen(two, 2, first) == {step: whole[step] for step in range(first, STEPS)}


def test_images_and_labels_are_those_on_disk(two: Datasets) -> None:
    stamps = [make_stamps(n, seed=k) for k, n in enumerate(N)]
    stored = {int(i): (s, row) for s in stamps for row, i in enumerate(s.object_id)}
    for batch in mixed(two).epoch(1):
        for name in ("images", "z_spec", "ebv", "sky_sigma"):
            want = [getattr(s, name)[row] for s, row in (stored[int(i)] for i in batch.object_id)]
            np.testing.assert_array_equal(getattr(batch, name).numpy(), want)


def test_an_epoch_ends_when_all_were_seen(two: Datasets) -> None:
    stream = mixed(two)
    assert stream.batches == max(-(-37 // 11), -(-23 // 5)) == 5
    first = list(stream.epoch(0))
    assert [batch.index for batch in first] == list(range(5))
    assert set(ids(first)) == {int(i) for k, n in enumerate(N) for i in make_stamps(n, seed=k).object_id}
    assert stream.batch_size(4) == BATCH and stream.rows == sum(N)


def test_equal_ids_in_two_datasets_and_two_passes_have_random_numbers_of_their_own(tmp_path: Path) -> None:
    folders = tuple(write_stamps(tmp_path / name, make_stamps(20)) for name in "ab")
    found = seen(Datasets(folders, (1, 1)), 1)
    keys = [key for step in found.values() for _, key, _ in step.values()]
    assert len(set(keys)) == len(keys) == STEPS * BATCH
    each = [Counter(n for n, _, _ in step.values()) for step in found.values()]
    assert max(max(count.values()) for count in each) > 1, "an id is in one batch twice: the case is met"


def test_other_storage_is_read_as_float32(two: Datasets, tmp_path: Path) -> None:
    packed = write_stamps(tmp_path / "b", make_stamps(N[1], seed=1), storage="int16")
    ours, theirs = seen(replace(two, folders=(two.folders[0], packed)), 2), seen(two, 1)
    for step, at in theirs.items():
        for position, (number, key, image) in at.items():
            assert ours[step][position][:2] == (number, key)
            pixels = [np.frombuffer(text, np.float32) for text in (image, ours[step][position][2])]
            half_a_unit = 0.2 / 64  # of the band with the largest sky sigma
            assert np.abs(pixels[0] - pixels[1]).max() <= (half_a_unit * 1.01 if number >> 32 else 0)


def test_statistics_are_combined_with_the_shares(two: Datasets) -> None:
    manifests = [read_manifest(folder) for folder in two.folders]
    found = two.read_manifest(BATCH)
    weight = np.array(SHARES)[:, None] / BATCH
    mean, std, sky = (
        np.array([getattr(m.statistics, name) for m in manifests]) for name in ("mean", "std", "sky_sigma")
    )
    np.testing.assert_allclose(found.statistics.mean, (weight * mean).sum(0))
    np.testing.assert_allclose(found.statistics.sky_sigma, (weight * sky).sum(0))
    square = (weight * (std**2 + mean**2)).sum(0)
    np.testing.assert_allclose(found.statistics.std, np.sqrt(square - (weight * mean).sum(0) ** 2))
    assert found.rows == sum(N)
    assert found.sha256 != replace(two, weights=(0.6, 0.4)).read_manifest(BATCH).sha256
    assert found.sha256 == replace(two, weights=(0.701, 0.299)).read_manifest(BATCH).sha256, "equal shares"


def test_one_dataset_with_a_weight_is_a_plain_stream(two: Datasets) -> None:
    alone = Datasets.parse([f"{two.folders[0]}:0.3"])
    how = {"global_batch": BATCH, "seed": 1, "world": World(), "pinned": False}
    stream = open_training_stream(alone, OPTIONS, **how)
    plain = Stream(two.folders[0], OPTIONS, global_batch=BATCH, seed=1)
    assert isinstance(stream, Stream) and str(alone) == alone.given == str(two.folders[0])
    assert ids(list(stream.epoch(1))) == ids(list(plain.epoch(1)))
    assert alone.read_manifest(BATCH) == plain.manifest


def test_validation_takes_the_parts_of_all_datasets_in_turn(two: Datasets) -> None:
    options = OPTIONS.model_copy(update={"validation": 0.3})
    how = {"global_batch": BATCH, "seed": 1, "world": World(), "pinned": False}
    stream = open_validation_stream(two, options, **how)
    batches = list(stream.epoch(0))
    want = [
        i
        for folder in two.folders
        for i in ids(
            list(
                Stream(folder, options, global_batch=BATCH, seed=1, part="validation", shuffle=False).epoch(0)
            )
        )
    ]
    assert ids(batches) == want and len(want) == stream.rows and len(batches) == stream.batches
    assert [batch.index for batch in batches] == list(range(len(batches)))
    trained = set(ids(list(mixed(two, options=options).epoch(0))))
    assert not trained & set(want) and len(trained) + len(want) == sum(N)


def test_damage_in_the_second_dataset_is_named_with_its_folder(two: Datasets, tmp_path: Path) -> None:
    broken = flip_byte(two.folders[1], tmp_path / "broken", "shard-00001.hdf5", 3)
    with pytest.raises(BadInput, match=r"broken/shard-00001\.hdf5: .*3"):
        list(mixed(replace(two, folders=(two.folders[0], broken))).epoch(0))
    skipping = OPTIONS.model_copy(update={"damaged": "skip"})
    batches = list(mixed(replace(two, folders=(two.folders[0], broken)), options=skipping).epoch(0))
    assert {batch.skipped for batch in batches} == {0, 1}
    assert all(len(batch.position) == BATCH - batch.skipped for batch in batches)
    assert all(len(batch.images) == len(batch.random_key) for batch in batches)  # type: ignore[arg-type]


def test_a_lost_shard_is_numbered_as_in_the_common_manifest(two: Datasets, tmp_path: Path) -> None:
    broken = tmp_path / "b"
    shutil.copytree(two.folders[1], broken)
    (broken / "shard-00000.hdf5").unlink()
    skipping = OPTIONS.model_copy(update={"damaged": "skip"})
    stream = mixed(replace(two, folders=(two.folders[0], broken)), options=skipping)
    (number,) = stream.census.lost
    assert stream.manifest.shards[number].file == str(broken / "shard-00000.hdf5")
    assert stream.census.lost_rows(stream.manifest) == 16 and stream.rows == sum(N) - 16


def test_datasets_that_differ_are_refused(two: Datasets, tmp_path: Path) -> None:
    a = two.folders[0]
    small = write_stamps(tmp_path / "small", make_stamps(20, size=8))
    with pytest.raises(
        BadInput, match=r"small: stamp 8, but 16 in .*a: .*equal bands, stamps and pixel scales"
    ):
        mixed(Datasets((a, small), (1, 1)))
    bands = write_stamps(tmp_path / "bands", make_stamps(20), bands="grizy")
    with pytest.raises(BadInput, match=r"bands: bands g,r,i,z,y, but u,g,r,i,z"):
        mixed(Datasets((a, bands), (1, 1)))
    scale = tmp_path / "scale"
    with DatasetWriter(scale, Header(tuple("ugriz"), 16, 0.2), 16, {}) as writer:
        writer.append(make_stamps(20))
    with pytest.raises(BadInput, match=r"scale: pixel scale 0\.2, but 0\.396"):
        mixed(Datasets((a, scale), (1, 1)))


def test_a_dataset_smaller_than_its_share_is_refused(two: Datasets, tmp_path: Path) -> None:
    few = write_stamps(tmp_path / "few", make_stamps(4, seed=2))
    with pytest.raises(
        BadInput, match=r"few: 4 objects to train on, and 8 of them in every global batch of 16"
    ):
        mixed(Datasets((two.folders[0], few), (1, 1))).batches  # noqa: B018
