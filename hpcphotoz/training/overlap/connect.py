"""Connects the ranks of overlap `ranks`: roles, process groups, and this rank's end of the exchange."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from hpcphotoz.compute.cost import attack_cost_law
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed import group
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, LearnerEndpoint
from hpcphotoz.training.overlap.roles import RankRole, assign_role
from hpcphotoz.training.overlap.topology import ExchangeTopology
from hpcphotoz.training.rank_batch import image_shape
from hpcphotoz.world import World


@dataclass(frozen=True)
class Connection:
    """What a rank needs to take its part in the steps."""

    role: RankRole
    loader: RankLoader  # of the slices of the ranks with this role
    endpoint: LearnerEndpoint | AttackerEndpoint | None  # None: no rank is an attacker


def connect(
    components: TrainingComponents,
    loader: RankLoader,
    world: World,
    steps: range,
    total_steps: int,
    waiting: Callable[[str], AbstractContextManager[None]],
    learner: type[LearnerEndpoint] = LearnerEndpoint,
    attacker: type[AttackerEndpoint] = AttackerEndpoint,
) -> Connection:
    """Decide whether this rank learns or attacks, and connect it to the others; called on all ranks.

    Args:
        components, loader: of the run on this rank; the loader divides global batches among all ranks.
        world: all ranks.
        steps: those that this process takes.
        total_steps: of the run; the attack has its full strength after them.
        waiting: times a wait, given what the rank waits for.
        learner, attacker: what receives and what sends attacked images.

    Raises:
        BadInput: as `assign_role`.
    """
    config, device = components.config, components.device

    def costs() -> tuple[float, float]:
        if config.compute.deterministic:  # the number of learners decides how sums are rounded
            attack = config.attack
            passes = attack.restarts * (1 if attack.method == "fgsm" else attack.steps)
            return attack_cost_law(passes, config.adversarial.fraction) - 1, 1.0
        batch = next(loader.rank_batches(steps.start, steps.stop))
        group.fail_together(batch.problem, world)
        return components.costs(replace(batch, step=total_steps))

    role = assign_role(config, world, costs, device)
    if role.split is None:
        return Connection(role, loader, None)
    loader = loader.for_world(role.world)
    fraction, overlap, size = config.adversarial.fraction, config.overlap, loader.global_batch_size
    topology = ExchangeTopology(
        role.split, world.rank, fraction, overlap, steps.stop, size, role.weights_group
    )
    topology.connect_peers(device)
    shape = image_shape(config.model, loader.train.manifest.header)
    given = topology, components.module, shape, device, steps.start, waiting
    return Connection(role, loader, attacker(*given) if role.is_attacker else learner(*given))
