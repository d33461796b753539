"""The files of a training run: averaged weights, and the state to resume from."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .atomic import write_bytes
from .checkpoint import CheckpointInfo, save_checkpoint
from .coco import DetectionSet
from .detector import Detector
from .errors import CheckpointError
from .supernet import Supernet

if TYPE_CHECKING:
    from .training import Averaged, TrainConfig


class RunFiles:
    """The files of one training run."""

    def __init__(
        self,
        folder: Path,
        network: Detector,
        optimizer: torch.optim.Optimizer,
        average: "Averaged",
        config: "TrainConfig",
        data: DetectionSet,
    ) -> None:
        """Name the files in `folder`; nothing is read or written yet."""
        self.checkpoint = folder / "weights.safetensors"
        self.state = folder / "state.pt"
        self.network, self.optimizer, self.average = network, optimizer, average
        self.config, self.data = config, data
        self.skipped = 0
        self.history: list[dict[str, Any]] = []

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be the same for a run to be resumed."""
        return {
            "config": json.loads(json.dumps(asdict(self.config))),
            "names": list(self.data.names),
            "images": len(self.data.records),
            "what": self._description(),
        }

    def _choices(self) -> dict[str, Any]:
        """Return the selection logits of a supernet, to be drawn over time."""
        if not isinstance(self.network, Supernet):
            return {}
        return {"r": {place: list(r) for place, r in self.network.named_logits().items()}}

    def _description(self) -> str:
        if isinstance(self.network, Supernet):
            return self.network.space.to_json()
        return self.network.architecture.to_json()

    def save(self, epoch: int, losses: dict[str, float], rate: float) -> None:
        """Write the averaged weights and the state to resume from."""
        self.history.append({"epoch": epoch, **losses, **self._choices()})
        facts = {
            "data": self.data.root.name,
            "split": self.data.split,
            "images": len(self.data.records),
            "images_per_second": round(rate, 2),
            "skipped_steps": self.skipped,
            "history": self.history,
            "config": asdict(self.config),
            "torch": torch.__version__,
        }
        if isinstance(self.network, Supernet):
            facts |= self.network.facts()
        info = CheckpointInfo(
            kind="supernet" if isinstance(self.network, Supernet) else "detector",
            description=self._description(),
            names=self.data.names,
            epoch=epoch,
            epochs=self.config.epochs,
            facts=facts,
        )
        raw = self.network.state_dict()
        save_checkpoint(
            self.checkpoint, self.average.weights if self.config.ema_decay else raw, info
        )
        state = {
            "fingerprint": self.fingerprint(),
            "epoch": epoch,
            "network": raw,
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "skipped": self.skipped,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.state, buffer.getvalue())

    def first_epoch(self, *, resume: bool, restart: bool) -> int:
        """Load the last finished epoch, if it is to be used; return how many are finished."""
        if restart or not self.state.exists():
            return 0
        try:
            state = torch.load(self.state, weights_only=True)
            fingerprint = state["fingerprint"]
        except Exception as error:
            raise CheckpointError(
                f"{self.state} is truncated ({type(error).__name__}): delete it to train afresh"
            ) from None
        if fingerprint != self.fingerprint():
            raise CheckpointError(
                f"{self.state} belongs to other settings, data or architecture: "
                "--restart replaces it, another --out keeps it"
            )
        if not resume and state["epoch"] < self.config.epochs:
            raise CheckpointError(
                f"{self.state} stands at epoch {state['epoch']} of {self.config.epochs}: "
                "--resume goes on, --restart begins again"
            )
        self.network.load_state_dict(state["network"])
        self.average.weights = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.skipped = state["history"], state["skipped"]
        return int(state["epoch"])
