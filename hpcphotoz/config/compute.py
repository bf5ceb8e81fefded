"""Section `compute`: how the device computes; these options change speed, memory and rounding alone."""

from typing import ClassVar, Literal

from pydantic import Field

from hpcphotoz.config.section import GREATEST, Section, Switch


class Compute(Section):
    """How the device computes: precision, memory format, compiler, CUDA graphs, micro-batches, buckets."""

    # Not the precisions: their rounding shows in the loss curve.
    may_change: ClassVar[frozenset[str]] = frozenset(
        "channels_last compiled graphs fused_adam micro_batch bucket_mb deterministic".split()
    )

    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="precision of the forward and backward passes of training; tf32: factors of float32 "
        "products rounded to TF32 (GPUs that have it); bf16: bfloat16 autocast; auto: the "
        "fastest in a short trial on the device (on a GPU, of tf32 and bf16)",
    )
    attack_precision: Literal["training", "fp32", "tf32", "bf16"] = Field(
        "training", description="precision of the gradients of the attack; training: the same as precision"
    )
    channels_last: Switch = Field("auto", description="memory format of images and weights; auto: on")
    compiled: Switch = Field(
        "auto",
        description="torch.compile; auto: on a GPU with a graph of the step, in runs of at least 2,000,000 "
        "images per rank, in which the minute or two of compiling pays off",
    )
    graphs: Literal["auto", "off", "attack", "step"] = Field(
        "auto",
        description="what is captured as a CUDA graph: the attack, or the attack and all passes of a step; "
        "auto, on a GPU: step; with overlap.mode streams attack; with overlap.mode ranks or objective free "
        "off",
    )
    fused_adam: Switch = Field("auto", description="update all parameters in one kernel; auto: on")
    micro_batch: int = Field(
        0,
        ge=0,
        description="objects of one forward and backward pass; the gradients of all passes of a step are "
        "summed; 0: 64 on a CPU, else all",
    )
    bucket_mb: float = Field(
        25,
        gt=0,
        le=GREATEST,
        description="MB of gradients in a bucket: averaged over ranks together, while the rest is computed",
    )

    deterministic: bool = Field(
        False,
        description="the same bits each time, also across a kill and a resume: loss curve, weights and "
        "checkpoints, on the same number of ranks and kind of device; no choice is made by timing, nothing "
        "is compiled, and ranks average gradients after the backward pass, not beside it",
    )

    def conflict(self, overlap_mode: str, objective: str, staleness: int) -> str | None:
        """Why graphs or deterministic mode cannot be had with the other options; None if they can."""
        if self.deterministic and self.compiled == "on":
            return (
                "compute.deterministic with compute.compiled on: the compiler chooses kernels by their time"
            )
        if self.deterministic and staleness:
            return (
                f"compute.deterministic with overlap.max_staleness {staleness}: the first attacks after a "
                "resume would have newer weights: want max_staleness 0"
            )
        if self.graphs not in ("attack", "step"):
            return None
        if overlap_mode == "ranks":
            return f"compute.graphs {self.graphs} with overlap.mode ranks: captures would wait for ranks"
        if objective == "free":
            return f"compute.graphs {self.graphs} with adversarial.objective free: has no attack of its own"
        return None
