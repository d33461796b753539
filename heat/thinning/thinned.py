"""What `heat thin` found: the record that export, report, build and explain go on from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Self

from latency_tables.devices import Target
from supernet.errors import UserError
from supernet.heatdetr.supernet import SearchSpace

from ..workspace import Workspace
from .limits import Limits

STAGE: Final = "thin"
COMMAND = "heat thin --target-fps FPS"


@dataclass(frozen=True, slots=True)
class OfDevice:
    """One of several devices that the network was thinned for."""

    device: str
    target_fps: float
    predicted_fps: float
    measured_fps: float | None


@dataclass(frozen=True, slots=True)
class Way:
    """Another way to run the smallest network, measured."""

    way: str
    """Options of `heat thin`, such as `--runtime openvino`."""
    fps: float
    """Measured frames per second."""
    reaches: bool
    """Whether it keeps the limits of speed."""

    def __str__(self) -> str:
        """Return options and frame rate."""
        return f"{self.way} ({self.fps:.1f} FPS)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinned:
    """Asked for, predicted, measured, and by which table; frame rates are sustained ones."""

    target_fps: float
    max_latency_ms: float | None
    percentile: str
    max_memory_mb: float | None
    max_size_mb: float | None
    predicted_fps: float
    predicted_ms: float
    table_ms: float
    """Predicted at the table's base state."""
    predicted_size_mb: float
    predicted_memory_mb: float | None
    measured_fps: float | None
    """None where the device is not at hand."""
    measured_fps_now: float | None
    """As the machine was in that minute."""
    measured_fps_typical: float | None
    measured_fps_best: float | None
    predicted_sd: float
    """Relative standard deviation."""
    sustained_share: float
    reference_ms: float
    measured_ms: float | None
    measured_p50_ms: float | None
    measured_p95_ms: float | None
    measured_size_mb: float | None
    measured_memory_mb: float | None
    met: bool
    speedup: float | None
    source: str
    """Of the table: measured or estimated."""
    here: bool
    """Whether the device is this machine."""
    device: str
    requested: str
    model: str
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    spinning: str
    pinning: bool
    input_size: tuple[int, int]
    architecture: str | None
    """File of the network; None where the target is out of reach."""
    widths: tuple[int, ...]
    blocks: tuple[str, ...]
    global_block: str
    positions: tuple[tuple[int, ...], ...]
    """For each stage, the supernet's positions that stay."""
    space: SearchSpace
    importance: Mapping[str, float]
    """Importance mass of every position of the space, by place."""
    ranked_by: str
    ap_drop_by: str
    proxies: Mapping[str, float | None]
    """Spearman correlation of each proxy that was checked with true AP."""
    table: str
    table_factor: float
    held_out_error: float | None
    margin: float
    measurements: int
    steps: int
    devices: tuple[OfDevice, ...]
    checked_ways: tuple[Way, ...] = ()
    """Where the target is out of reach: other ways that were measured, best first."""
    candidates: tuple[str, ...] = ()
    """What was chosen from: sizes, runtimes and precisions, in words."""
    out_of_reach: bool = field(default=False)
    seconds: float = 0.0

    @property
    def fps(self) -> float:
        """Measured frame rate, or predicted where nothing was measured."""
        return self.measured_fps or self.predicted_fps

    @property
    def limits(self) -> Limits:
        """What was asked for."""
        return Limits(
            target_fps=self.target_fps,
            max_latency_ms=self.max_latency_ms,
            percentile="p95" if self.max_latency_ms and self.percentile == "p95" else "p50",
            max_memory_mb=self.max_memory_mb,
            max_size_mb=self.max_size_mb,
        )

    def is_for(self, target: Target, limits: Limits) -> bool:
        """Return whether a network was asked for on this device within these limits."""
        asked = (target.device.name, target.setting)
        own = ("runtime", "precision", "threads", "spinning", "pinning")
        setting = replace(target.setting, **{name: getattr(self, name) for name in own})
        of = (self.requested, setting)
        if target.here and (not self.here or target.name != self.device):
            return False  # of another machine, for which the same name stood there
        # The record has one frame rate: that of the limit that asks for more.
        return of == asked and self.limits == replace(limits, target_fps=limits.fps)

    def to_dict(self) -> dict[str, object]:
        """Return the record as JSON values; the network of a floor is under `floor`."""
        found = {name.name: getattr(self, name.name) for name in fields(self)}
        found["space"] = self.space.to_dict()
        found["devices"] = [asdict(device) for device in self.devices]
        ways = [asdict(way) for way in found.pop("checked_ways")]
        if found.pop("out_of_reach"):
            found["floor"] = {"widths": found.pop("widths"), "blocks": found.pop("blocks")}
            found["checked_ways"] = ways
        return {name: _plain(value) for name, value in found.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a record; one that another version of HEAT wrote is a `UserError`."""
        known = {item.name for item in fields(cls)}
        try:
            found = {name: value for name, value in values.items() if name in known}
            found["space"] = SearchSpace.from_dict(values["space"], "run.json")
            found["devices"] = tuple(OfDevice(**device) for device in values["devices"])
            height, width = values["input_size"]
            found["input_size"] = (height, width)
            found["candidates"] = tuple(values.get("candidates", ()))
            found["widths"], found["blocks"] = tuple(values["widths"]), tuple(values["blocks"])
            found["positions"] = tuple(tuple(chosen) for chosen in values["positions"])
            return cls(**found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"run.json holds no result of this version's heat thin ({error}): run {COMMAND}"
            ) from None


def find_thinned(workspace: Workspace) -> Thinned | None:
    """Return what the last `heat thin` of a workspace found, if there was one."""
    found = workspace.stages().get(STAGE)
    return None if found is None else Thinned.from_dict(found)


def need_thinned(workspace: Workspace) -> Thinned:
    """Return what the last `heat thin` found; without one raise `UserError`."""
    return Thinned.from_dict(workspace.need(STAGE, COMMAND))


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
