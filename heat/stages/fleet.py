"""`heat thin --targets`: one supernet serves a fleet, a network for each of its devices."""

from collections.abc import Mapping

from supernet.errors import PromiseError

from ..records import Result
from ..thinning.candidates import Wanted
from ..thinning.proxies import ApDropBy
from ..workspace import Workspace
from .thin import thin


def thin_fleet(
    workspace: Workspace, members: Mapping[str, Wanted], *, ap_drop: ApDropBy = "auto"
) -> Result:
    """Thin for every member into `fleet/NAME/`; raise `PromiseError` at the end if one fails."""
    results: dict[str, Result | None] = {}
    missed = []
    for name, member in members.items():
        try:
            results[name] = thin(
                workspace.member(name),
                member.candidates,
                data=member.data,
                ap_drop=ap_drop,
                trust=member.trust,
            )
        except PromiseError as error:
            missed.append(f"{name}: {error}")
            results[name] = error.result
    result = {"fleet": results, "met": not missed}
    workspace.record("fleet", result)
    if missed:
        raise PromiseError("; ".join(missed), result)
    return result
