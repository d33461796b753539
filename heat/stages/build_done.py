"""Which stages of a build are done, as they would be done now."""

from dataclasses import asdict

from deploy.form import Format
from latency_tables.devices import Target
from latency_tables.store import conditions_of
from supernet.heatdetr.supernet import SearchSpace

from ..thinning.limits import Limits
from ..thinning.thinned import find_thinned
from ..workspace import Workspace
from .export import export_of


def is_profiled(workspace: Workspace, space: SearchSpace, target: Target) -> bool:
    """Return whether the last profile measured this space on this machine, as it is to be run.

    With another version of the runtime, or other cores, it is another machine.
    """
    found = workspace.stage("profile")
    return (
        (found.get("here"), found.get("source")) == (True, "measured")
        and found.get("conditions") == asdict(conditions_of(target, space.template.input_size))
        and SearchSpace.from_dict(found["space"], "run.json") == space
    )


def is_thinned(
    workspace: Workspace, space: SearchSpace, target: Target, limits: Limits, format: Format
) -> bool:
    """Return whether the last thinning was of this build's supernet and table, and came true."""
    found = find_thinned(workspace)
    exported = export_of(workspace, format)
    head = space.template.head
    broken = exported.get("broken") and exported.get("head", head) == head  # not of --head
    later = workspace.finished("thin")
    return (
        found is not None
        and found.met
        and found.space == space
        and found.is_for(target, limits)
        and later >= workspace.finished("supernet")
        and later >= workspace.finished("profile")
        and not broken
    )
