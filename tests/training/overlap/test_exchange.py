"""The order in which an attacker posts its messages, recorded without another rank."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz.training.distributed.agreement import Verdict
from hpcphotoz.training.monitoring.lost_ranks import JoinedRanks, WaitLimits
from hpcphotoz.training.overlap.exchange import AttackerEndpoint
from hpcphotoz.training.overlap.messages import header
from hpcphotoz.training.overlap.roles import assign_role
from hpcphotoz.training.overlap.topology import ExchangeTopology, RankSplit
from hpcphotoz.training.rank_batch import make_rank_batch
from hpcphotoz.world import World
from tests.helpers.networks import ConvNetwork
from tests.helpers.training.steps import SIZE, batch, configured

LAST = 5


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_weights_are_asked_for_when_the_images_they_wait_for_are_sent(
    staleness: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pending receive occupies a GPU; loading a kernel for the attack may wait for it to end."""
    posted: list[str] = []
    asked: list[int] = []

    def broadcast(message: Tensor, source: int, **options: Any) -> object:
        asked.append(len(asked) + 1)
        posted.append(f"weights {asked[-1]}")
        header(message)[:2] = torch.tensor([asked[-1], int(Verdict.GO_ON)])
        return SimpleNamespace(wait=lambda: None)

    def isend(message: Tensor, rank: int, tag: int) -> object:
        posted.append(f"images {tag}")
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr("torch.distributed.broadcast", broadcast)
    monkeypatch.setattr("torch.distributed.isend", isend)
    config = configured(mode="ranks", max_staleness=staleness)
    topology = ExchangeTopology(RankSplit(2, 1), 1, 0.4, config.overlap, LAST, lambda step: SIZE, None)
    end = AttackerEndpoint(
        topology, ConvNetwork(), (3, 8, 8), torch.device("cpu"), 0, lambda what: nullcontext()
    )
    for step in range(LAST):
        rank_batch = replace(
            make_rank_batch(batch(), config, 0, step), positions=batch().position.numpy()[:4]
        )
        assert end.weights_for(step) is Verdict.GO_ON
        posted.append(f"attack {step}")
        end.send(rank_batch, rank_batch.images[rank_batch.attacked], stop=False)
    for version in asked:
        # Learners need the attacked images of the step before to make these weights.
        assert posted.index(f"weights {version}") > posted.index(f"images {version - 1}")
    assert asked == list(range(1, LAST - staleness)), "exactly the weights that are needed"
    if staleness:
        during = [
            f"attack {version + staleness - 1}" for version in asked
        ]  # the step before the weights are needed
        early = [posted.index(f"weights {v}") < posted.index(a) for v, a in zip(asked, during, strict=True)]
        assert all(early), "with staleness weights arrive during an attack"


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_groups_are_connected_by_the_collectives_that_they_will_use(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL connects at the first use of each collective, which must not happen during the steps."""
    calls: list[tuple[str, object]] = []
    monkeypatch.setattr("torch.distributed.new_group", lambda members, timeout: tuple(members))
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(
            f"torch.distributed.{name}", lambda *given, group, name=name: calls.append((name, group))
        )
    config = configured(mode="ranks", attackers=1)
    monkeypatch.setattr("hpcphotoz.training.distributed.group.joined", [JoinedRanks(None, WaitLimits(9, 3))])
    assign_role(config, World(rank, 3, rank, 3, "torchrun"), lambda: (1.0, 1.0), torch.device("cpu"))
    weights, learners = ("broadcast", (0, 2)), ("all_reduce", (0, 1))
    assert calls == {0: [weights, learners], 1: [learners], 2: [weights]}[rank]
