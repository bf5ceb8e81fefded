"""A peer attack library in its own environment, which answers requests so that it can take turns.

.venv-peers/bin/python benchmarks/peers/attack.py torchattacks|foolbox|art MODEL.pt DATA.pt

Says `ready VERSION`, then answers each line on standard input by one line of JSON:

    pgd STEPS    {"seconds", "loss", "worst"}: random start, steps of 2.5 eps / STEPS
    apgd STEPS   the same; torchattacks alone
    save PATH    {}, after torch.save of the last attacked images, (N, B, H, W) nMgy

`seconds` is the attack alone, all objects, batch by batch; `loss` the mean cross-entropy of the attacked
images; `worst` the largest |attacked - clean| / eps. Both files come from torch.save:

    MODEL.pt     network ("inception", "cnn", "compact"), bins, stamp, scale (nMgy per band), normalisation,
                 width, state; what it does not name is as in hpcphotoz.config
    DATA.pt      images (N, B, H, W) float32 nMgy, ebv (N,), label (N,) int64, eps (B,) nMgy, batch;
                 tuned: whether channels_last is set by hand; precision: fp32, tf32, or bf16 by autocast

Each library runs with its defaults, by its shortest public way to the attacked images: on the GPU where there
is one, on the CPU elsewhere.
What libraries print goes to standard error. Bad input is one line there and exit status 2.
"""

import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).parents[2]))  # last: its folders must not hide installed packages
from hpcphotoz.models.cnn import CompactCNN, SmallCNN  # noqa: E402
from hpcphotoz.models.inception import Inception  # noqa: E402
from hpcphotoz.models.layers import Normalise  # noqa: E402

GRID = 2**24  # float32 holds every multiple of 1 / GRID on [-1, 1]
MARGIN = 2  # eps between the outermost pixels and 0 or 1: clipping there never acts
FEWEST = 16  # multiples of 1 / GRID that epsilon must have
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Attack = Callable[[Tensor, Tensor], Tensor]  # pixels on [0, 1] (N, B, H, W), label (N,) -> attacked pixels
Maker = Callable[[int], Attack]  # steps -> attack


class Pixels(nn.Module):
    """A network for libraries that want pixels on [0, 1] and one epsilon: images = (x - zero) * span.

    `eps01` is the epsilon of every band, because span = eps / eps01. It is the largest that leaves all pixels
    `MARGIN` eps01 inside (0, 1), rounded down to a multiple of 2^-24. `zero`, where no flux lies, and the
    pixels are such multiples too: x - zero, x - eps01 and x + eps01 are exact in float32, and no library
    leaves the ball by rounding. In nMgy, the way there and back moves a pixel by at most 2^-23 / eps01 of its
    epsilon, 1e-3 where pixels span 1e4 epsilons; `worst` shows it.

    Args:
        network: called as network(images, ebv), nMgy and mag.
        images: (N, B, H, W) float32, nMgy, all that will be attacked.
        eps: (B,) float32, nMgy.

    Raises:
        ValueError: epsilon is not positive, or too small beside the brightest pixel for float32.
    """

    zero: Tensor
    span: Tensor

    def __init__(self, network: nn.Module, images: Tensor, eps: Tensor) -> None:
        super().__init__()
        if not (eps > 0).all():
            raise ValueError(f"epsilon must be positive in every band, not {eps.tolist()}")
        lo = images.amin((0, 2, 3)).double().clamp(max=0) / eps
        hi = images.amax((0, 2, 3)).double().clamp(min=0) / eps
        widest = float((hi - lo).max())
        multiples = GRID // (widest + 2 * MARGIN)
        if not multiples >= FEWEST:  # also NaN
            raise ValueError(f"pixels span {widest:.3g} epsilons: float32 on [0, 1] cannot resolve epsilon")
        self.network, self.eps01 = network, multiples / GRID
        self.ebv = torch.empty(0)  # of the batch under attack; set before each
        zero = ((MARGIN - lo) * multiples).ceil() / GRID
        self.register_buffer("zero", zero.float()[:, None, None])
        self.register_buffer("span", (eps.double() / self.eps01).float()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, bins) of pixels on [0, 1]."""
        logits: Tensor = self.network(self.images(x), self.ebv)
        return logits

    def images(self, x: Tensor) -> Tensor:
        """Pixels on [0, 1] to nMgy."""
        return (x - self.zero) * self.span

    def pixels(self, images: Tensor) -> Tensor:
        """NMgy to pixels on [0, 1], multiples of 2^-24."""
        x = images.double() / self.span + self.zero
        return ((x * GRID).round() / GRID).float()


@dataclass(frozen=True)
class Task:
    """A network and the objects to attack, with their E(B-V), redshift bins and epsilon per band."""

    model: Pixels
    bins: int
    images: Tensor
    ebv: Tensor
    label: Tensor
    eps: Tensor
    batch: int
    precision: str  # of the attack: fp32, tf32 (the same on a CPU), or bf16 by autocast

    def batches(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images (as given: nMgy or pixels), E(B-V) and label, batch by batch."""
        for first in range(0, len(images), self.batch):
            rows = slice(first, first + self.batch)
            yield images[rows], self.ebv[rows], self.label[rows]

    def run(self, attack: Attack) -> tuple[float, Tensor]:
        """Seconds of attacking all objects, and the attacked images in nMgy."""
        seconds, done = 0.0, []
        for x, ebv, label in self.batches(self.model.pixels(self.images)):
            self.model.ebv = ebv
            synchronise()
            allow_tf32(self.precision != "fp32")
            start = time.perf_counter()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=self.precision == "bf16"):
                adv = attack(x, label)
            synchronise()
            seconds += time.perf_counter() - start
            done.append(self.model.images(adv.detach()))
        return seconds, torch.cat(done)

    @torch.no_grad()
    def loss(self, images: Tensor) -> float:
        """Mean cross-entropy, in float32."""
        allow_tf32(False)
        sums = [
            functional.cross_entropy(self.model.network(x, ebv), label, reduction="sum")
            for x, ebv, label in self.batches(images)
        ]
        return float(torch.stack(sums).sum()) / len(images)

    def worst(self, images: Tensor) -> float:
        """The largest perturbation, in units of epsilon."""
        return float(((images - self.images).abs() / self.eps[:, None, None]).max())


def load(model: Path, data: Path) -> Task:
    """Read both files."""
    spec, found = read(model), read(data)
    network = build(spec)
    network.load_state_dict(spec["state"])
    network.eval().to(DEVICE)
    if found.get("tuned"):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, eps = found["images"].contiguous(), found["eps"]
    pixels = Pixels(network, images, eps).eval().to(DEVICE)
    rest = found["ebv"], found["label"], eps, found["batch"], found["precision"]
    return Task(pixels, spec["bins"], images, *rest)


def allow_tf32(on: bool) -> None:
    """Let a GPU round the factors of float32 products to TF32, or forbid it."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def read(path: Path) -> dict[str, Any]:
    """Load a file of torch.save, without unpickling code."""
    try:
        found: dict[str, Any] = torch.load(path, map_location=DEVICE, weights_only=True)
    except (EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} holds no tensors written by torch.save") from error
    return found


def build(spec: dict[str, Any]) -> nn.Module:
    """The network that MODEL.pt describes; as `hpcphotoz.models.build`, which needs more than torch."""
    normalise, bands = Normalise(spec["normalisation"], tuple(spec["scale"])), len(spec["scale"])
    shape = (normalise, bands, spec["stamp"], spec["bins"])
    if spec["network"] == "compact":
        return CompactCNN(*shape, width=spec["width"])
    if spec["network"] == "cnn":
        return SmallCNN(*shape, relu_logits=False)
    if spec["network"] == "inception":
        return Inception(*shape, relu_logits=False, counts_padding=True)
    raise ValueError(f"unknown network {spec['network']!r}")


def torchattacks(task: Task) -> tuple[str, dict[str, Maker]]:
    """Version and attacks of torchattacks.

    Its APGD, called as usual, attacks only objects whose most probable bin is the true one, and returns the
    last image with a wrong bin; `best_loss` attacks all, and returns the image of the largest loss.
    """
    import torchattacks as peer  # type: ignore[import-not-found]

    model, eps = task.model, task.model.eps01

    def pgd(steps: int) -> Attack:
        attack: Attack = peer.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)
        return attack

    def apgd(steps: int) -> Attack:
        attack = peer.APGD(model, norm="Linf", eps=eps, steps=steps, n_restarts=1, loss="ce", rho=0.75)
        return lambda x, label: attack.perturb(x, label, best_loss=True)[1]

    return peer.__version__, {"pgd": pgd, "apgd": apgd}


def foolbox(task: Task) -> tuple[str, dict[str, Maker]]:
    """Version and attacks of foolbox; `run` leaves out the forward pass that counts successes."""
    import foolbox as peer  # type: ignore[import-not-found]

    eps = task.model.eps01
    model = peer.PyTorchModel(task.model, bounds=(0, 1), device=DEVICE)

    def pgd(steps: int) -> Attack:
        attack = peer.attacks.LinfPGD(abs_stepsize=2.5 * eps / steps, steps=steps)
        return lambda x, label: attack.run(model, x, peer.criteria.Misclassification(label), epsilon=eps)

    return peer.__version__, {"pgd": pgd}


def art(task: Task) -> tuple[str, dict[str, Maker]]:
    """Version and attacks of ART, whose `generate` always adds two forward passes that count successes.

    Its AutoProjectedGradientDescent leaves out objects whose most probable bin is not the true one, and
    returns an attacked image only where that bin changes: no measure of the loss.
    """
    os.environ["HOME"] = sys.prefix  # the import writes ~/.art/config.json
    import art as peer  # type: ignore[import-not-found]
    from art.attacks.evasion import ProjectedGradientDescent  # type: ignore[import-not-found]
    from art.estimators.classification import PyTorchClassifier  # type: ignore[import-not-found]

    eps = task.model.eps01
    classifier = PyTorchClassifier(
        task.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(task.images.shape[1:]),
        nb_classes=task.bins,
        clip_values=(0.0, 1.0),
        device_type="gpu" if DEVICE == "cuda" else "cpu",
    )

    def pgd(steps: int) -> Attack:
        attack = ProjectedGradientDescent(
            classifier,
            eps=eps,
            eps_step=2.5 * eps / steps,
            max_iter=steps,
            num_random_init=1,
            batch_size=task.batch,
            verbose=False,
        )
        return lambda x, label: torch.from_numpy(attack.generate(x.cpu().numpy(), label.cpu().numpy())).to(
            DEVICE
        )

    return peer.__version__, {"pgd": pgd}


LIBRARIES = {"torchattacks": torchattacks, "foolbox": foolbox, "art": art}


def answer_requests(words: list[str], out: TextIO) -> None:
    """Load, then answer until standard input ends."""
    if len(words) != 3 or words[0] not in LIBRARIES:
        raise ValueError(f"usage: attack.py {'|'.join(LIBRARIES)} MODEL.pt DATA.pt")
    task = load(Path(words[1]), Path(words[2]))
    version, makers = LIBRARIES[words[0]](task)
    print("ready", version, file=out, flush=True)
    last: Tensor | None = None
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        figures: dict[str, float] = {}
        if command in makers:
            seconds, last = task.run(makers[command](int(rest)))
            figures = {"seconds": seconds, "loss": task.loss(last), "worst": task.worst(last)}
        elif command == "save" and last is not None:
            torch.save(last.cpu(), rest)
        else:
            raise ValueError(f"{words[0]} cannot answer {line.strip()!r} here")
        print(json.dumps(figures), file=out, flush=True)


def main() -> None:
    """Keep standard output for answers; an error is one line."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer_requests(sys.argv[1:], out)
    except (OSError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(complain(error))


def complain(error: Exception) -> int:
    """Report an error in one line; returns the exit status."""
    print(f"attack.py: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
