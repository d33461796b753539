"""How a network is trained: the settings of a run, and named sets of them.

`small` is for training from scratch on some hundred to some thousand images; `1x` and `3x` are
the paper's, for a backbone that was trained on ImageNet before (spec section 11). `detr` and
`sam-detr` are those of their authors, `mtkd` distils a trained one so that it tolerates ACT.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ..data.augment import AugmentConfig
from ..errors import UserError

Schedule = Literal["cosine", "flat-cosine", "1x", "3x", "detr", "sam-detr", "mtkd"]
Precision = Literal["auto", "f32", "bf16", "f16"]
Assign = Literal["uniform", "aligned"]
"""Label assignment: the paper's (`matching.py`), or `aligned.py`."""
Optimizer = Literal["adamw", "muon"]
"""AdamW for all parameters, or Muon for convolutions and linear maps, AdamW for the others."""


MAX_SEED = 2**32
"""Seeds from here on would overflow in the seeds of single steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a network is trained; the defaults suit small sets from scratch."""

    epochs: int = 36
    """Passes over the training split."""
    batch_size: int = 8
    """Images of a batch, over all processes."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one step."""
    optimizer: Optimizer = "adamw"
    """What updates the weights; both have one scale of learning rates."""
    learning_rate: float = 1e-3
    """Peak learning rate; the paper's 1e-4 is for pretrained backbones."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a share of the others'; in DETR's family only."""
    vector_rate: float = 1.0
    """Learning rate of what has no weight decay, as a share of the others'; in HeatDETR only."""
    weight_decay: float = 0.05
    """Weight decay of convolutions, in DETR's family of linear maps too; all else has none."""
    schedule: Schedule = "cosine"
    """cosine, flat-cosine with a cosine in the last 30 % only, or the stepped ones of the recipes
    of these names."""
    warmup_steps: int = 100
    """Steps of linear warm-up (at most a tenth of the run)."""
    clip_norm: float = 5.0
    """Largest gradient norm."""
    ema_decay: float = 0.998
    """Decay of the averaged weights that are saved; 0 saves the raw ones."""
    drop_path: float = 0.0
    """Largest stochastic depth rate of window blocks (the paper's ancestors: 0.2)."""
    precision: Precision = "auto"
    """f32, autocast to bf16 or f16 (CUDA only), or auto: bf16 where it is computed."""
    assign: Assign = "uniform"
    """Which anchors are assigned to a box."""
    plain_epochs: int = 0
    """Last epochs, which have no mosaics."""
    balanced: bool = False
    """Draw images of rare classes more often (repeat factors, Gupta et al. 2019)."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Strength of the augmentation."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError(f"--epochs {self.epochs} --batch-size {self.batch_size}: at least 1")
        if self.accumulate < 1:
            raise UserError(f"--accumulate {self.accumulate}: at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate {self.learning_rate}: a positive number needed")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--drop-path {self.drop_path}: a rate of 0 <= rate < 1 needed")
        if not 0 <= self.seed < MAX_SEED:
            raise UserError(f"--seed {self.seed}: a whole number from 0 to {MAX_SEED - 1} needed")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay}: 0 <= decay < 1 needed")

    def lasting(self) -> dict[str, object]:
        """Return the settings that must stay the same when a run is resumed: all but its length."""
        length = ("epochs", "plain_epochs")
        return {key: value for key, value in asdict(self).items() if key not in length}


SMALL = TrainConfig(
    epochs=150,
    optimizer="muon",
    vector_rate=5.0,
    schedule="flat-cosine",
    plain_epochs=15,
    augment=AugmentConfig(
        mosaic=1.0,
        pasted=0.5,
        scale=(0.6, 1.6),
        shift=0.1,
        brightness=0.3,
        contrast=0.2,
        hue=0.02,
    ),
)
DETR_RATE = 4e-4
DETR_SCHEDULE: Schedule = "cosine"
"""Peak learning rate and schedule of `small` for DETR's family: at 1e-3 SAM-DETR learns much less
(benchmarks/results/detr-family/bisect.md); flat-cosine was not tried there."""
SUPERNET = TrainConfig(optimizer="muon")
"""For supernets, whose weights the thinned network may start from."""
PAPER_1X = TrainConfig(
    epochs=12,
    batch_size=32,
    learning_rate=1e-4,
    schedule="1x",
    warmup_steps=500,
    clip_norm=1.0,
    ema_decay=0.0,
    drop_path=0.2,
    augment=AugmentConfig(
        scale=(1.0, 1.0), shift=32 / 800, shifted=0.5, brightness=0.0, contrast=0.0, saturation=0.0
    ),
)
PAPER_3X = replace(
    PAPER_1X,
    epochs=36,
    schedule="3x",
    augment=replace(PAPER_1X.augment, scale=(480 / 800, 1.0), shift=0.0, crop=0.5),
)
PRETRAIN = TrainConfig(
    epochs=300,
    batch_size=64,
    learning_rate=2.5e-4,
    warmup_steps=1000,
    ema_decay=0.9998,
    drop_path=0.2,
    augment=AugmentConfig(saturation=0.4, hue=0.02),
)
"""Swin's classification recipe; its rate of 1e-3 for 1024 images, scaled by the batch's root.

Convolutions alone decay here: the last linear layer, which decays there, counts as a vector.
"""
FEATURES = TrainConfig(
    epochs=100,
    batch_size=32,
    optimizer="muon",
    warmup_steps=500,
    augment=AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.4, hue=0.02),
)
"""For learning a teacher's features; of the augmentation only flip and colours are used."""
FOR_DETR = TrainConfig(
    epochs=300,
    batch_size=16,
    learning_rate=1e-4,
    backbone_rate=0.1,
    weight_decay=1e-4,
    schedule="detr",
    warmup_steps=1,
    clip_norm=0.1,
    ema_decay=0.0,
    augment=replace(PAPER_3X.augment, brightness=0.0, contrast=0.0, saturation=0.0),
)
"""Carion et al. 2020; 64 images there, with the same rate."""
FOR_SAM_DETR = replace(FOR_DETR, epochs=50, schedule="sam-detr")
"""Zhang et al. 2022."""
FOR_MTKD = replace(FOR_DETR, epochs=7, learning_rate=1e-5, schedule="mtkd")
"""Zheng et al. 2020, section 4.1: 1e-5 for five epochs, 1e-6 for two."""
RECIPES: Mapping[str, TrainConfig] = {
    "small": SMALL,
    "1x": PAPER_1X,
    "3x": PAPER_3X,
    "detr": FOR_DETR,
    "sam-detr": FOR_SAM_DETR,
    "mtkd": FOR_MTKD,
}
"""Recipes by name."""


def recipe(name: str, **changes: Any) -> TrainConfig:
    """Return a recipe with some settings replaced, those that are not None.

    `plain_epochs` never covers more than a third of a run.
    """
    if name not in RECIPES:
        raise UserError(f"--recipe {name}: one of {', '.join(RECIPES)}")
    config = changed(RECIPES[name], **changes)
    return replace(config, plain_epochs=min(config.plain_epochs, config.epochs // 3))


def changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Return settings with some replaced, those that are not None."""
    return replace(config, **{key: value for key, value in changes.items() if value is not None})
