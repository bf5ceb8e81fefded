"""Commands on real ranks of gloo: the same output as one process, one line for a failure, nothing left."""

import contextlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz import atomic
from hpcphotoz.__main__ import main
from hpcphotoz.cli import command_ranks
from hpcphotoz.predict import partial, qp_file
from hpcphotoz.world import World
from tests.helpers import ranks
from tests.helpers.builds import content
from tests.helpers.datasets import make_dataset
from tests.helpers.processes.interruption import interrupted

SMALL = ["--attacks", "fgsm", "pgd", "--eps", "0.1", "--steps", "2", "--device", "cpu", "--precision", "fp32"]


def predict(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["predict", str(run), "--data", str(data), "--out", str(out), "--device", "cpu", *more]


def evaluate(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", str(run), "--data", str(data), "--out", str(out), *SMALL, *more]


@pytest.mark.parametrize(
    ("size", "more"), [(2, []), pytest.param(3, ["--where", "z_spec > 0.1"], marks=pytest.mark.slow)]
)
def test_ranks_predict_the_bytes_of_one_process(
    run: Path, dataset: Path, tmp_path: Path, size: int, more: list[str]
) -> None:
    assert main(predict(run, dataset, tmp_path / "one.hdf5", *more)) == 0
    ended = ranks.run(size, predict(run, dataset, tmp_path / "all.hdf5", *more))
    assert [status for status, _, _ in ended] == [0] * size, ended
    assert (tmp_path / "all.hdf5").read_bytes() == (tmp_path / "one.hdf5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.hdf5", "one.hdf5"]
    assert ended[0][1].startswith(f"{tmp_path}/all.hdf5: ") and not any(said for _, said, _ in ended[1:])


def test_a_rank_has_its_own_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the threads of a whole node each, ranks of mpiexec would wait for each other's."""
    prepared: list[World] = []
    monkeypatch.setattr(command_ranks, "prepare_rank", prepared.append)
    with command_ranks.sharing_ranks(["predict"], Path("pz.hdf5")):
        assert prepared == [World()]


@pytest.mark.slow
def test_more_ranks_than_batches(run: Path, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "few", n=5, shard_rows=4)
    assert main(predict(run, data, tmp_path / "one.hdf5")) == 0
    ended = ranks.run(4, predict(run, data, tmp_path / "all.hdf5"))
    assert [status for status, _, _ in ended] == [0] * 4, ended
    assert (tmp_path / "all.hdf5").read_bytes() == (tmp_path / "one.hdf5").read_bytes()
    assert main(evaluate(run, data, tmp_path / "one")) == 0
    ended = ranks.run(3, evaluate(run, data, tmp_path / "all"))
    assert [status for status, _, _ in ended] == [0] * 3, ended
    assert (tmp_path / "all/metrics.json").read_text() == (tmp_path / "one/metrics.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "more"),
    [
        (2, ["--minimal-eps", "0.5"]),
        (3, ["--limit", "40"]),
        (
            2,
            ["--limit", "40", "--perturbation", "--certify", "0.5", "--samples", "12", "--confidence", "0.9"],
        ),
    ],
)
def test_ranks_evaluate_as_one_process(
    run: Path, dataset: Path, tmp_path: Path, size: int, more: list[str]
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    assert same_report([run, other], dataset, tmp_path, size, more)[0] == 0


@pytest.mark.slow
def test_ranks_check_masking_and_compare_with_the_sky_as_one_process(run: Path, tmp_path: Path) -> None:
    """Both ranks have objects of every measurement: each has a shard of four.

    The checks take some thousand passes: of one network half a minute, under load ten times as long.
    """
    data = make_dataset(tmp_path / "few", n=8, shard_rows=4)
    more = ["--check-masking", "6", "--natural", "7", "--second-epoch", str(data)]
    status, found = same_report([run], data, tmp_path, 2, more)
    assert found["masking"]["objects"] == 6 and status == int(not found["masking"]["passed"])
    assert found["natural"]["networks"][run.name]["sky_noise"]["n"] == 7
    assert found["natural"]["second_epoch"]["matched"] == 7


def same_report(
    runs: list[Path], data: Path, tmp_path: Path, size: int, more: list[str]
) -> tuple[int, dict[str, Any]]:
    """Exit status and metrics of ranks that evaluate these runs, which are those of one process."""
    words = evaluate(runs[0], data, tmp_path / "one", *more)
    words[2:2] = map(str, runs[1:])
    alone = main(words)
    words[words.index(str(tmp_path / "one"))] = str(tmp_path / "all")
    ended = ranks.run(size, [*words, "--json"])
    assert [status for status, _, _ in ended] == [alone] * size, ended
    one, found = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "all"))
    assert found == one == json.loads(ended[0][1])
    first, second = tmp_path / "one", tmp_path / "all"
    for path in (path for path in first.rglob("*") if path.is_file()):  # figures and certified_radii.csv too
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes(), path
    assert not any(said for _, said, _ in ended[1:])
    return alone, found


@pytest.mark.slow
def test_a_damaged_shard_ends_all_ranks_with_one_line_and_leaves_no_output(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(dataset, tmp_path / "data")
    last = sorted(data.glob("shard-*.hdf5"))[-1]
    last.write_bytes(last.read_bytes()[:-4096] + bytes(4096))  # read by the last rank alone
    (tmp_path / "out").mkdir()
    for words in (
        predict(run, data, tmp_path / "out" / "pz.hdf5"),
        evaluate(run, data, tmp_path / "out" / "report"),
    ):
        ended = ranks.run(2, words)
        assert [status for status, _, _ in ended] == [2, 2], ended
        errors = [line for _, _, error in ended for line in error.splitlines() if "error: " in line]
        assert len(errors) == 1 and last.name in errors[0], ended
        assert {path.name for path in (tmp_path / "out").iterdir()} <= {"pz.hdf5.partial"}


def goes_on(run: Path, dataset: Path, out: Path, *more: str) -> None:
    """The same command on one process ends with the bytes of a prediction that was never interrupted."""
    assert {path.name for path in out.parent.iterdir()} <= {f"{out.name}.partial"}
    whole = out.with_name("whole.hdf5")
    for path in (out, whole):
        assert main(predict(run, dataset, path, *more)) == 0
    assert out.read_bytes() == whole.read_bytes()
    whole.unlink()
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    out.unlink()


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others(run: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()
    started = ranks.start(2, predict(run, dataset, out, "--tta"))
    ranks.wait_until(lambda: (out.with_name("pz.hdf5.partial") / "plan.json").exists(), started)
    started[1].send_signal(signal.SIGKILL)
    ended = ranks.finish(started)
    assert ended[0][0] == 1 and "rank 1 on" in ended[0][2] and "Traceback" not in ended[0][2], ended
    goes_on(run, dataset, out, "--tta")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_prediction_that_is_ended_by_sigterm_goes_on(
    run: Path, dataset: Path, tmp_path: Path, size: int
) -> None:
    """torchrun sends it where a rank has died; batch systems do where a job is cancelled."""
    out = tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()
    started = ranks.start(size, predict(run, dataset, out, "--tta"))
    ranks.wait_until(lambda: (out.with_name("pz.hdf5.partial") / "plan.json").exists(), started)
    for each in started:
        each.terminate()
    ended = ranks.finish(started)
    assert ended[0][0] == -signal.SIGTERM and "Traceback" not in ended[0][2], ended
    goes_on(run, dataset, out, "--tta")


@pytest.mark.slow
def test_a_sigterm_at_any_line_leaves_no_output(run: Path, dataset: Path, tmp_path: Path) -> None:
    """Of the lines that make files and hand them over: there no `with` holds them yet."""
    out = tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()
    words = predict(run, dataset, out)
    modules = (partial, qp_file, atomic, contextlib)
    statuses = []

    def end() -> None:
        signal.raise_signal(signal.SIGTERM)

    for line in range(0, 200, 7):  # more than the folder and a file of rows are made in
        if not interrupted(line, lambda: statuses.append(main(words)), end, modules):
            break
        assert statuses[-1] == 128 + signal.SIGTERM
        left = [path for path in out.parent.rglob("*.tmp")]
        assert not left, f"at line {line}: {left}"
        if not out.exists():
            goes_on(run, dataset, out)
        out.unlink(missing_ok=True)
    assert len(statuses) > 10  # it was interrupted, and not only as it began


@pytest.mark.slow
def test_ranks_with_other_options_are_refused(run: Path, dataset: Path, tmp_path: Path) -> None:
    words = predict(run, dataset, tmp_path / "pz.hdf5")
    shared = {"MASTER_PORT": str(ranks.free_port())}
    own = [{**shared, "WORLD_SIZE": "2", "RANK": str(rank)} for rank in range(2)]
    started = [*ranks.start(1, words, own[:1]), *ranks.start(1, [*words, "--tta"], own[1:])]
    ended = ranks.finish(started)
    assert [status for status, _, _ in ended] == [2, 2] and "--tta" in ended[0][2], ended
    assert not (tmp_path / "pz.hdf5").exists()


def test_ranks_without_mpi_simulate_the_shards_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("galsim")
    words = ["simulate", str(tmp_path / "one"), "--n", "7", "--shard-rows", "3"]
    assert main([*words, "--processes", "1"]) == 0
    words[1] = str(tmp_path / "all")
    ended = ranks.run(2, words)
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "7 galaxies in 3 shards" in ended[0][1] and not ended[1][1]
    assert content(tmp_path / "all") == content(tmp_path / "one")
