"""What the functions of `heat` return: the result of a command, to be read, shown and plotted."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from supernet.errors import UserError

from ..records import Result
from ..workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deploy.edge.detect import Bundle
    from deploy.edge.ladder import Ladder


@dataclass(frozen=True)
class Outcome(Mapping[str, object]):
    """The JSON of a command as a mapping; in a notebook a table of what matters of it."""

    result: Result
    workspace: Workspace

    SHOWN: ClassVar[tuple[str, ...]] = ()
    """Keys of the table, those that there are."""

    def __getitem__(self, key: str) -> object:
        """Return a value of the JSON."""
        return self.result[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self.result)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.result)

    def __repr__(self) -> str:
        """Return the keys of the table in one line."""
        facts = ", ".join(f"{key}={value!r}" for key, value in self._shown())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key.replace('_', ' '))}</th>"
            f"<td style='text-align:left'>{html.escape(_text(value))}</td></tr>"
            for key, value in self._shown()
        )
        return f"<table>{rows}</table>"

    def plot(self) -> "Figure":
        """Return a figure of the result; a result without one is a `UserError`."""
        raise UserError(f"{type(self).__name__} has no figure: heat.report() shows the workspace")

    def _shown(self) -> list[tuple[str, object]]:
        keys = self.SHOWN or tuple(self.result)
        return [(key, self.result[key]) for key in keys if key in self.result]

    def _get(self, key: str) -> Any:
        if key not in self.result:
            raise UserError(
                f"this {type(self).__name__} has no {key}: it has {', '.join(self.result)}"
            )
        return self.result[key]


def _text(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


class Profile(Outcome):
    """A latency table was made."""

    SHOWN = ("device", "runtime", "precision", "threads", "entries", "held_out_error", "table")

    @property
    def table(self) -> Path:
        """File of the latency table."""
        return Path(cast(str, self._get("table")))

    @property
    def held_out_error(self) -> float | None:
        """Median relative error on networks that the table was not calibrated on."""
        return cast("float | None", self._get("held_out_error"))

    def plot(self) -> "Figure":
        """Draw milliseconds against width, a panel for each stride."""
        from latency_tables.table_file import read_table

        from ..views.charts import table_figure

        return table_figure(read_table(self.table))


class Thinning(Outcome):
    """A network was found for a target; frame rates are sustained ones at batch 1."""

    SHOWN = (
        "target_fps", "predicted_fps", "measured_fps", "met", "device", "runtime", "precision",
        "input_size", "widths", "blocks", "ranked_by", "architecture",
    )  # fmt: skip

    @property
    def met(self) -> bool:
        """Whether the target was kept."""
        return bool(self._get("met"))

    @property
    def predicted_fps(self) -> float:
        """Frames per second by the latency table."""
        return cast(float, self._get("predicted_fps"))

    @property
    def measured_fps(self) -> float | None:
        """Frames per second on the device; None where it is not at hand."""
        return cast("float | None", self._get("measured_fps"))

    @property
    def architecture(self) -> Path:
        """File of the network."""
        return Path(cast(str, self._get("architecture")))

    def plot(self) -> "Figure":
        """Draw the way of thinning on the plane of frame rate and what is lost."""
        from ..stages.report_charts import thinning_figure
        from ..thinning.thinned import Thinned

        return thinning_figure(self.workspace, Thinned.from_dict(self.result))


class Training(Outcome):
    """A network was trained."""

    SHOWN = ("epochs", "images", "images_per_second", "seconds", "stopped_early", "checkpoint")

    @property
    def checkpoint(self) -> Path:
        """File of the weights."""
        return Path(cast(str, self._get("checkpoint")))

    def plot(self) -> "Figure":
        """Draw the terms of the loss over the epochs."""
        from supernet.checkpoint import read_info

        from ..views.report_figures import draw_losses

        figure = draw_losses(read_info(self.checkpoint).history)
        return super().plot() if figure is None else figure


class Export(Outcome):
    """A bundle was written, compared with torch and timed."""

    SHOWN = (
        "target_fps", "predicted_fps", "measured_fps", "ap", "ap50", "trained", "format",
        "precision", "parity_max_box_px", "bundle",
    )  # fmt: skip

    @property
    def bundle(self) -> Path:
        """Folder of the bundle, or of the ladder."""
        found = self._get("bundle")
        if found is None:
            raise UserError(
                "no network was exported (bundle None): heat.export(ladder=) with lower frame rates"
            )
        return Path(cast(str, found))

    @property
    def measured_fps(self) -> float | None:
        """Frames per second of the bundle; None where it cannot run here."""
        return cast("float | None", self._get("measured_fps"))

    def load(self) -> "Bundle | Ladder":
        """Load the bundle or the ladder, as `heat.load` does."""
        from deploy.edge.ladder import open_finder

        return open_finder(self.bundle)

    def plot(self) -> "Figure":
        """Draw target, predicted and measured frame rate as bars."""
        from ..views.report_figures import draw_speeds

        keys = ("target_fps", "predicted_fps", "measured_fps")
        known = {key.removesuffix("_fps"): self.result.get(key) for key in keys}
        rates = {name: float(fps) for name, fps in known.items() if isinstance(fps, int | float)}
        return draw_speeds(rates)


class Evaluation(Outcome):
    """A network was scored by COCO average precision."""

    SHOWN = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100", "images", "split")

    @property
    def ap(self) -> float | None:
        """AP over IoU 0.50 to 0.95; None without objects."""
        return cast("float | None", self._get("ap"))

    @property
    def ap50(self) -> float | None:
        """AP at IoU 0.5."""
        return cast("float | None", self._get("ap50"))

    def plot(self) -> "Figure":
        """Draw AP of each class as bars."""
        from ..views.report_figures import draw_class_ap

        return draw_class_ap(cast("dict[str, float | None]", self._get("ap_by_class")))


class Report(Outcome):
    """The HTML page was written."""

    SHOWN = ("report",)

    @property
    def path(self) -> Path:
        """File of the page."""
        return Path(cast(str, self._get("report")))


class Described(Outcome):
    """An architecture was counted."""

    SHOWN = ("macs_conv_linear", "macs_attention", "params_deployed")


class Labelled(Outcome):
    """Images were labelled by a teacher."""

    SHOWN = ("data", "images", "images_without_labels", "labels", "uncertain", "uncertain_list")


class Drawn(Outcome):
    """A set was drawn; what `heat data check` and `convert` found they printed."""

    SHOWN = ("train", "val", "data")


OF_COMMAND: Mapping[str, type[Outcome]] = {
    "profile": Profile, "supernet": Training, "thin": Thinning, "train": Training,
    "pretrain": Training, "adopt": Training, "export": Export, "eval": Evaluation,
    "build": Export, "report": Report, "describe": Described, "label": Labelled, "data": Drawn,
}  # fmt: skip


def summary(command: str, result: Result) -> str:
    """Return what matters of a result, a line for each fact; nothing where tables said it all."""
    kind = OF_COMMAND.get(command, Outcome)
    facts = [(key, result[key]) for key in kind.SHOWN if key in result]
    longest = max((len(key) for key, _ in facts), default=0)
    return "".join(f"{key.replace('_', ' '):<{longest}}  {_text(value)}\n" for key, value in facts)
