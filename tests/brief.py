"""Measures roughly: tests are about what follows from a number, not about the number."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deploy.export
import heat.stages.profile
import heat.thinning.candidates
import heat.thinning.filling
import heat.thinning.floor
import heat.thinning.measuring
import latency_tables.meter
import latency_tables.probe.batch
from deploy.edge.bench import measure_speed
from latency_tables.plan import Checks


def measure_briefly(set_value: Callable[[Any, str, Any], object]) -> None:
    """Let this process profile with few networks, and watch and time briefly.

    `set_value` is `setattr`, or that of a patch that is undone later.
    """
    rough = partial(Checks, networks=3, memory=2, budget_s=1.5)
    lazy = Checks(networks=2, memory=0, budget_s=1.5)
    fresh = (sys.executable, str(Path(__file__).with_name("brief_fresh.py")))
    for module in (latency_tables.meter, heat.thinning.floor, heat.thinning.measuring):
        set_value(module, "FRESH_COMMAND", fresh)
    for name in ("NETWORK_ROUNDS", "NETWORK_MIN_ROUNDS"):  # those of torch, in this process
        set_value(latency_tables.probe.batch, name, 3)
    set_value(latency_tables.meter, "ENTRY_ROUNDS", 2)
    set_value(latency_tables.meter, "ENTRY_MAX_ROUNDS", 3)
    set_value(heat.stages.profile, "Checks", rough)
    set_value(heat.thinning.candidates, "Checks", rough)
    set_value(heat.thinning.filling, "WATCH_S", 0.4)
    set_value(heat.thinning.filling, "REWATCH_S", 1.5)
    set_value(heat.thinning.candidates, "LAZY", lazy)
    set_value(heat.thinning.floor, "BUDGET_S", 6.0)
    set_value(heat.thinning.measuring, "WAIT_S", 0.1)
    set_value(deploy.export, "measure_speed", partial(measure_speed, burst_seconds=0.05))
