"""The conditions that must be equal for two latencies to be comparable."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from supernet.errors import TableError
from supernet.graph.style import FORMS_VERSION

from .probe.machine import Detected, Gpu
from .probe.setting import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Device, runtime, precision, threads and size of a latency table.

    Tables of different conditions never merge, and a table is used under its own only.
    """

    device: str
    """Name of the machine: a declared device's only if it is that device."""
    model: str
    """CPU or GPU model as detected."""
    flags: str = ""
    """Vector extensions of the CPU that matter for inference, separated by spaces."""
    cores: int = 0
    """Cores the process may use."""
    quota: float = 0.0
    """CPU quota of the container in cores; 0 for none."""
    governor: str = "unknown"
    """Frequency governor of the CPU."""
    driver: str = ""
    """GPU driver version."""
    clocks: str = ""
    """Highest GPU clocks."""
    runtime: str
    runtime_version: str
    precision: str
    """Precision that the runtime executes."""
    threads: int
    height: int
    """Input height in pixels."""
    width: int
    """Input width in pixels."""
    forms: int
    """Version of the operators' deployed graphs, `FORMS_VERSION` of `supernet/graph/style.py`."""
    spinning: str = "brief"
    """How long idle threads spin: brief, always or never."""
    pinning: bool = False
    """Whether each thread is pinned to one core."""

    def __post_init__(self) -> None:
        """Refuse names that would put a table elsewhere than in its folder."""
        stem = str(self.stem)
        if Path(stem).name != stem or "\\" in stem or not stem.isprintable():
            raise TableError(
                f"{stem!r} is no name of a table: a device has a name without / and \\"
            )

    @classmethod
    def of(
        cls,
        name: str,
        cpu: Detected,
        gpu: Gpu | None,
        setting: Setting,
        runtime_version: str,
        input_size: tuple[int, int],
    ) -> Self:
        """Return the conditions of a machine and a setting."""
        height, width = input_size
        return cls(
            device=name,
            model=gpu.model if gpu else cpu.model,
            flags=" ".join(cpu.flags),
            cores=cpu.cores,
            quota=cpu.quota or 0.0,
            governor=cpu.governor,
            driver=gpu.driver if gpu else "",
            clocks=gpu.clocks if gpu else "",
            runtime=setting.runtime,
            runtime_version=runtime_version,
            precision=setting.precision,
            threads=setting.threads,
            height=height,
            width=width,
            forms=FORMS_VERSION,
            spinning=setting.spinning,
            pinning=setting.pinning,
        )

    @property
    def setting(self) -> Setting:
        """How the models of the table are executed."""
        return Setting(
            runtime=self.runtime,
            precision=self.precision,
            threads=self.threads,
            device="cuda" if self.driver else "cpu",
            spinning=self.spinning,
            pinning=self.pinning,
        )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return stem_of(self.device, self.setting, self.input_size)

    def command(self, device: str) -> str:
        """Return the command that measures a table under these conditions on a device."""
        height, width = self.input_size
        words = ["heat profile"]
        words += [f"--device {device}"] if device != "cpu" else []
        words += [f"--runtime {self.runtime}"]
        words += [f"--precision {self.precision}"] if self.precision != "f32" else []
        words += [f"--threads {self.threads}"]
        words += [f"--spinning {self.spinning}"] if self.spinning != "brief" else []
        words += ["--pinning"] if self.pinning else []
        return " ".join([*words, f"--input-size {height}x{width}"])

    def differences(self, other: "Conditions") -> str:
        """Describe the fields that differ; empty where none does."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"{key} {mine[key]} against {theirs[key]}" for key in mine if mine[key] != theirs[key]
        )

    def require(self, other: "Conditions", what: str, fix: str) -> None:
        """Raise `TableError` where the conditions differ."""
        different = self.differences(other)
        if different:
            raise TableError(f"{what} ({different}): {fix}")


def stem_of(device: str, setting: Setting, input_size: tuple[int, int]) -> str:
    """Return the file name, without suffix, of a device's table."""
    height, width = input_size
    return f"{device}-{name_of(setting)}-{height}x{width}"


def name_of(setting: Setting) -> str:
    """Return what names a setting in file names: no two settings of a device share it."""
    how = f"{setting.runtime}-{setting.precision}-t{setting.threads}"
    how += "" if setting.spinning == "brief" else f"-spinning-{setting.spinning}"
    return how + ("-pinned" if setting.pinning else "")
