"""Facts of a host are those that were planted on it."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz.launch.doctor.facts import QuotaFacts
from hpcphotoz.launch.doctor.finding import Level
from hpcphotoz.launch.doctor.host import collect_login, look_at_folder, parse_quota, variables
from hpcphotoz.launch.doctor.host_rules import judge_host, judge_login
from hpcphotoz.node import folders
from tests.helpers.disks import SmallDisk
from tests.helpers.launch.runs import Install


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path / "disk")
    yield small
    small.close()


def bad(folder: Path) -> dict[str, Level]:
    """Checks of this machine that have something to fix, of runs in a folder."""
    facts = collect_login(folder)
    return {
        each.name: each.level
        for each in [*judge_login(facts), *judge_host(facts)]
        if each.level >= Level.WARNING
    }


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Take away what this machine may have; returns the checks that it cannot pass all the same."""
    for name in variables(os.environ):
        monkeypatch.delenv(name)
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return set(bad(tmp_path)) & {"host name", "free space", "shared memory", "open files", "locked memory"}


def test_this_machine_is_fine_but_for_what_it_lacks(clean: set[str], tmp_path: Path) -> None:
    assert set(bad(tmp_path)) == clean


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("SBATCH_TIMELIMIT", "2", "environment"),
        ("SRUN_CPUS_PER_TASK", "1", "environment"),
        ("RANK", "0", "environment"),
        ("PMI_RANK", "3", "environment"),
        ("MASTER_PORT", "29500", "environment"),
        ("SLURM_JOB_ID", "12", "environment"),
        ("PYTHONSAFEPATH", "1", "environment"),
        ("GLOO_SOCKET_IFNAME", "nosuch0", "interfaces"),
        ("NCCL_SOCKET_IFNAME", "nosuch", "interfaces"),
        ("TMPDIR", "/proc", "folder"),
    ],
)
def test_a_variable_of_the_shell_is_found(
    name: str, value: str, check: str, clean: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    found = set(bad(tmp_path))
    assert check in found and found - clean - {"free space", "inodes"} == {check}


def test_the_variable_that_names_the_cluster_is_no_disturbance(
    clean: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    assert "environment" not in bad(tmp_path)


def test_a_full_disk_and_one_without_inodes_are_found(disk: SmallDisk) -> None:
    folder = disk.mount("size=1m,nr_inodes=20")
    with pytest.raises(OSError, match="No space"), (folder / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    found = bad(folder)
    assert found["free space"] is found["inodes"] is Level.PROBLEM


def test_a_read_only_folder_is_found(disk: SmallDisk) -> None:
    folder = disk.mount("size=1m")
    disk.make_read_only()
    assert "Read-only" in look_at_folder("run folder", folder).error
    assert bad(folder)["folder"] is Level.PROBLEM


def test_looking_at_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    facts = look_at_folder("run folder", tmp_path / "not made yet")
    assert not facts.error and facts.total_bytes >= facts.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_cache_on_a_network_file_system_is_found(
    clean: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mounts").write_text("/dev/sda / ext4 rw 0 0\nserver:/users /users nfs4 rw 0 0\n")
    monkeypatch.setattr(folders, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/users/me/.triton")
    assert set(bad(tmp_path)) - clean == {"caches"}


def test_few_open_files_and_little_locked_memory_are_counted(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hpcphotoz.launch.doctor.host import collect_login\n"
        "facts = collect_login(Path(sys.argv[1])); print(facts.open_files, facts.locked_memory)"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))

    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, preexec_fn=limit, check=True)
    assert done.stdout.split() == ["256", "65536"]


def test_cores_are_those_of_the_affinity_mask(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert collect_login(tmp_path).cores == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_package_that_is_not_there_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hpcphotoz.launch.doctor import host

    monkeypatch.setattr(host, "_PACKAGES", ("hpcphotoz", "nosuchpackage"))
    assert collect_login(tmp_path).missing == {"nosuchpackage": "not installed"}


def test_quotas_of_both_commands_are_read() -> None:
    lustre = "     /work  985*  900 1000 6d23h  42  0  100 -\n"
    kinds = {(each.unit, each.used, each.limit) for each in parse_quota(lustre)}
    assert kinds == {("kB", 985, 900), ("files", 42, 100)}
    text = "Disk quotas for user me (uid 7): \n Filesystem blocks quota limit grace files quota limit grace\n"
    text += "server:/users 10 0 0 0 5 0 0 0\n"
    assert parse_quota(text)[0] == QuotaFacts(file_system="server:/users", unit="kB", used=10, limit=0)


def test_a_quota_that_is_used_up_is_found(clean: set[str], install: Install, tmp_path: Path) -> None:
    install("quota", "echo 'server:/users 990* 900 1000 6days 5 0 0 0'; exit 1")
    assert bad(tmp_path)["quota"] is Level.PROBLEM
