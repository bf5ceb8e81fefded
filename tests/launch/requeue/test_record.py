"""The limit on requeues counts those without progress."""

import pickle
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.requeue.record import (
    STOPPED,
    NoProgress,
    Requeue,
    RequeueRecord,
    newest_step,
    record_file,
)


def record_of(*steps: int | None) -> RequeueRecord:
    return RequeueRecord(tuple(Requeue(k, step, STOPPED) for k, step in enumerate(steps)))


@pytest.mark.parametrize(
    ("steps", "step", "count"),
    [
        ((), 0, 1),
        ((), 5, 0),
        ((5,), 5, 1),
        ((5, 5, 5), 5, 3),
        ((5, 5, 5), 6, 0),
        ((0, 0, 7), 7, 1),
        ((9,), 4, 1),  # the newest checkpoint was lost
        ((5, None, None), 5, 1),  # Slurm's own requeues, whose step is not known
    ],
)
def test_progress_resets_the_count(steps: tuple[int | None, ...], step: int, count: int) -> None:
    assert record_of(*steps).without_progress(step) == count


def test_the_limit_is_on_requeues_without_progress_and_zero_is_none_at_all() -> None:
    assert not record_of(*range(1, 100)).refusal(100, 2)
    assert not record_of(4, 4).refusal(4, 2)
    refusal = record_of(4, 4, 4).refusal(4, 2)
    assert "2 requeues in a row without progress" in refusal and "step 4" in refusal and "\n" not in refusal
    assert "--max-requeues is 0" in record_of().refusal(100, 0)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = record_file(tmp_path, "7_2")
    path.parent.mkdir()
    record = RequeueRecord((Requeue(0, 3, STOPPED, "n1", "an error"),), ("n1",), "why")
    record.write(path)
    assert RequeueRecord.read(path) == record
    assert path.name == "7_2_requeues.json" and len(list(path.parent.iterdir())) == 1
    again = record.add(Requeue(0, 4, STOPPED))
    assert [entry.step for entry in again.requeues] == [4]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"requeues": [{"step": 1}]}'])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "record").write_text(text)
    with pytest.raises(BadInput, match="record: damaged"):
        RequeueRecord.read(tmp_path / "record")


def test_the_newest_step_is_that_of_a_whole_checkpoint(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-00000007.pt", "step-00000010.pt", "step-00000012.pt.tmp", "step-x.pt"):
        (tmp_path / "checkpoints" / name).touch()
    assert newest_step(tmp_path) == 10


def test_a_stopped_job_comes_back_while_it_has_progress(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, limit = Path(job.out), job.max_requeues
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (run / "checkpoints").mkdir(parents=True)
    (run / "launch").mkdir()
    for restart in range(3 * limit):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        (run / "checkpoints" / f"step-{restart + 1:08d}.pt").touch()
        again = job.checkpoint()
        assert again.function == job and len(pickle.dumps(again)) < 4096
    for restart in range(3 * limit, 4 * limit):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        job.checkpoint()
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(4 * limit))
    with pytest.raises(NoProgress, match=f"{limit} requeues in a row .* step {3 * limit}"):
        job.checkpoint()
    record = RequeueRecord.read(record_file(run, "7"))
    assert len(record.requeues) == 4 * limit and record.ended.startswith("not requeued")
