"""Where the tasks of a SLURM step meet."""

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.node.address import first_node, meeting_port, step_address


def test_the_port_is_not_one_that_the_system_hands_out_and_moves_on_a_restart() -> None:
    ports = {meeting_port(str(job), str(restart)) for job in range(1000) for restart in range(3)}
    assert min(ports) >= 1024 and max(ports) < 32768
    assert len(ports) > 2500
    assert meeting_port("7", "0") == meeting_port("7", "0") != meeting_port("7", "1")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("nid[001234-001240,002000]", "nid001234"),
        ("gpu-a[07,09-10],cpu[1-2]", "gpu-a07"),
        ("rack[2-3]node[09-12]", "rack2node09"),
        ("a[3]-ib", "a3-ib"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize("nodes", ["", ",n1", "n[1-2", "n[]"])
def test_what_is_no_list_of_nodes_is_refused(nodes: str) -> None:
    with pytest.raises(BadInput, match="set MASTER_ADDR and MASTER_PORT"):
        step_address({"SLURM_STEP_NODELIST": nodes})


def test_tasks_of_a_step_find_the_same_place_and_other_steps_another() -> None:
    """A name that does not resolve is replaced by the address of the node where srun runs."""
    env = {"SLURM_STEP_NODELIST": "no-such-node[1-2]", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.7"}
    env |= {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    found = step_address(env)
    assert found == step_address({**env, "SLURM_PROCID": "3"}) and found[0] == "192.0.2.7"
    others = [step_address({**env, name: "1"}) for name in ("SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    assert len({found, *others}) == 3
    assert step_address({**env, "SLURM_STEP_NODELIST": "localhost"})[0] == "localhost"
