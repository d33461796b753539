"""The reference models, whose timings show how fast the machine is at the moment.

Other load, a falling clock and a hypervisor do not slow all operators equally. So four small models
are timed in every batch: a whole network, a compute-bound operator, a memory-bound one, and one
dominated by call overhead. They depend only on the setting and, for the network, the input size.
"""

from collections.abc import Mapping
from functools import cache

from supernet.heatdetr.operators.entries import Entry

from .models import write, write_network
from .networks import reference_architecture
from .probe.setting import Model, Setting
from .terms import ProbeModel

OPERATORS = {
    "compute": ProbeModel("chain", Entry("repcnn", 16, 128, 128, 28, 28), 3),
    "memory": ProbeModel("alone", Entry("up4", 4, 192, 192, 112, 112)),
    "small": ProbeModel("chain", Entry("wmsa", 64, 32, 32, 7, 7), 3),
}
"""Compute: convolutions. Memory: 22 MB read and written. Small: many calls on little data."""


@cache
def reference_models(input_size: tuple[int, int], setting: Setting) -> Mapping[str, Model]:
    """Return the reference models of a setting, by name."""
    network = write_network(reference_architecture(input_size), setting)
    return {"network": network} | {name: write(probe, setting) for name, probe in OPERATORS.items()}
