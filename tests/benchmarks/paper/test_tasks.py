"""Tasks are done once, in order, and again only where what they depend on has changed."""

from pathlib import Path

from benchmarks.paper.tasks import Found, Task, do_all


def tasks(log: list[str], eps: float = 0.1, fails: bool = False) -> list[Task]:
    """A task, one that needs it, and one that needs nothing."""

    def work(name: str) -> Found:
        log.append(name)
        if fails and name == "train":
            raise RuntimeError("no\n  galaxies")
        return {"name": name}

    train = Task("train", {"eps": eps}, lambda: work("train"))
    return [
        train,
        Task("judge", {"objects": 3}, lambda: work("judge"), [train]),
        Task("other", {}, lambda: work("other")),
    ]


def test_what_was_done_is_not_repeated(tmp_path: Path) -> None:
    log: list[str] = []
    assert not do_all(tasks(log), tmp_path, 1).failed and log == ["train", "judge", "other"]
    assert not do_all(tasks(log), tmp_path, 1).failed and len(log) == 3
    assert tasks([])[1].found(tmp_path) == {"name": "judge"}
    assert tasks([])[1].record(tmp_path)["settings"] == {"objects": 3}


def test_a_changed_setting_changes_all_that_needs_it(tmp_path: Path) -> None:
    log: list[str] = []
    do_all(tasks(log), tmp_path, 2)
    do_all(tasks(log, eps=0.2), tmp_path, 1)
    assert log[3:] == ["train", "judge"], "the other does not depend on eps"


def test_what_needs_a_failure_fails_and_the_rest_is_done(tmp_path: Path) -> None:
    log: list[str] = []
    outcome = do_all(tasks(log, fails=True), tmp_path, 2)
    assert outcome.failed == {"train": "no galaxies", "judge": "needs train"}
    assert sorted(log) == ["other", "train"] and not outcome.left_out
    assert not do_all(tasks(log), tmp_path, 2).failed and log.count("train") == 2 and log.count("other") == 1


def test_nothing_starts_after_the_time(tmp_path: Path) -> None:
    log: list[str] = []
    outcome = do_all(tasks(log), tmp_path, 2, minutes=-1)
    assert outcome.left_out == ["train", "judge", "other"] and not log
