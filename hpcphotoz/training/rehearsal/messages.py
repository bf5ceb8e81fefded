"""The message plan of overlap `ranks`: who sends what to whom, seen from both ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hpcphotoz.training.overlap.messages import ImageMessages
from hpcphotoz.training.overlap.topology import RankSplit

Pair = tuple[int, int]  # attacker, learner


@dataclass(frozen=True)
class MessagePlan:
    """The messages of one step, and what does not agree in them."""

    images: Mapping[Pair, int]  # number of attacked images in the message of each pair
    bytes: Mapping[Pair, int]
    problems: list[str] = field(default_factory=list)

    def most(self, end: int) -> tuple[int, int]:
        """The most messages, and the most bytes, of one attacker (`end` 0) or of one learner (1)."""
        count: dict[int, int] = {}
        size: dict[int, int] = {}
        for pair, number in self.bytes.items():
            count[pair[end]] = count.get(pair[end], 0) + 1
            size[pair[end]] = size.get(pair[end], 0) + number
        return max(count.values(), default=0), max(size.values(), default=0)


def plan_messages(
    split: RankSplit, size: int, fraction: float, transfer: str, shape: tuple[int, int, int]
) -> MessagePlan:
    """Plan the messages of a step on every rank, and compare both ends of each.

    Args:
        split: the roles.
        size: objects of the global batch.
        fraction: of attacked objects.
        transfer: encoding of the images, `overlap.images_transfer`.
        shape: (B, H, W) of an image.
    """
    ends: tuple[dict[Pair, list[int]], dict[Pair, list[int]]] = ({}, {})
    for rank in range(split.size):
        attacks = split.is_attacker(rank)
        position = split.attacked_positions(rank, size, fraction)
        for one in split.message_slices(rank, size, fraction):
            pair = (rank, one.rank) if attacks else (one.rank, rank)
            ends[0 if attacks else 1][pair] = position[one.start : one.stop].tolist()
    sent, received = ends
    problems = [
        f"attacker {pair[0]} sends {len(sent.get(pair, []))} images to learner {pair[1]}, which waits for "
        f"{len(received.get(pair, []))}, or for others"
        for pair in sorted(sent.keys() | received.keys())
        if sent.get(pair) != received.get(pair)
    ]
    queues = [split.pairs(rank) for rank in range(split.size)]
    connected = {pair for queue in queues for pair in queue}
    problems += [
        f"attacker {pair[0]} and learner {pair[1]} are not connected before their first message"
        for pair in sorted(sent.keys() - connected)
    ]
    if stuck := stuck_ranks(queues):
        problems.append(f"ranks {stuck[:5]} wait for each other while they connect")
    messages = ImageMessages(transfer, shape, torch.device("meta"))
    images = {pair: len(positions) for pair, positions in sent.items()}
    size_of = {number: messages.empty(number).numel() for number in set(images.values())}
    return MessagePlan(images, {pair: size_of[number] for pair, number in images.items()}, problems)


def stuck_ranks(queues: Sequence[Sequence[Pair]]) -> list[int]:
    """The ranks that never come to the end of their queue, where both ends of a pair wait for each other.

    Args:
        queues: of each rank, the pairs with it in them, in the order in which it connects them.
    """
    done, waiting = [0] * len(queues), list(range(len(queues)))
    while waiting:
        rank = waiting.pop()
        if done[rank] == len(queues[rank]):
            continue
        pair = queues[rank][done[rank]]
        other = pair[1] if pair[0] == rank else pair[0]
        if done[other] < len(queues[other]) and queues[other][done[other]] == pair:
            done[rank], done[other] = done[rank] + 1, done[other] + 1
            waiting += [rank, other]
    return [rank for rank, queue in enumerate(queues) if done[rank] < len(queue)]
