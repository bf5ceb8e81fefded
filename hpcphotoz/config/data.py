"""Section `data`: which objects are used, how they are split, and how shards are streamed."""

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hpcphotoz.config.section import GREATEST, Section

_NSIDES = tuple(str(2**k) for k in range(14))


class Data(Section):
    """Which objects are used, how they are split, and how shards are streamed."""

    may_change: ClassVar[frozenset[str]] = frozenset({"read_threads", "windows_ahead", "verify", "damaged"})

    where: str = Field(
        "", description="use only objects that meet this condition, such as 'z_spec < 0.3 and ebv < 0.1'"
    )
    validation: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="fraction of the objects held out for validation, by object id (see split_by)",
    )
    test: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="fraction of the objects held out for evaluation, by object id (see split_by)",
    )
    split_seed: int = Field(0, ge=0, lt=2**31, description="seed of the split; independent of run.seed")
    split_by: str = Field(
        "",
        description="keep objects together in the split: healpix:NSIDE, those of one HEALPix pixel (NSIDE a "
        "power of two, 1 to 8192), or the name of a column of whole numbers, booleans or text, those of one "
        "value; empty: by object id",
    )
    augment: bool = Field(True, description="flip and rotate training images at random, by right angles")
    noise: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="Gaussian noise added to each pixel of the training images, drawn anew each epoch, in "
        "sky sigmas of its band; for networks that evaluate --certify smooths with the same noise; 0: none",
    )
    block_rows: int = Field(64, ge=1, description="rows of a block: neighbours on disk, read together")
    window_blocks: int = Field(
        32, ge=1, description="blocks of a window: shuffled together (more if four global batches need more)"
    )
    read_threads: int = Field(2, ge=1, le=256, description="reading threads of each rank")
    windows_ahead: int = Field(
        1, ge=1, le=256, description="windows read ahead; the ranks of a node share their memory"
    )
    verify: Literal["first", "always", "never"] = Field(
        "first",
        description="when to compare images and labels with their checksums; first: in the first epoch of "
        'each process (with damaged "skip", images in every epoch)',
    )
    damaged: Literal["fail", "skip"] = Field(
        "fail",
        description="what to do with damaged images; fail: name them and stop; skip: leave them out and "
        'count them, which compares checksums in every epoch (not with verify "never")',
    )

    @field_validator("split_by")
    @classmethod
    def _names_groups(cls, text: str) -> str:
        kind, colon, nside = text.partition(":")
        if colon and (kind != "healpix" or nside not in _NSIDES):
            raise ValueError("must be healpix:NSIDE, NSIDE a power of two from 1 to 8192, or a column's name")
        if text and not colon and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", text):
            raise ValueError("must be healpix:NSIDE or a column's name, of A-Z a-z 0-9 _, a letter first")
        return text

    @model_validator(mode="after")
    def _split_leaves_training_objects(self) -> "Data":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on")
        return self
