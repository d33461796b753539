"""Commands that only look: describe, devices, doctor, report."""

from dataclasses import asdict

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .find import find_judged, recorded_data
from .options import Data, DeviceName, Out, Size


def describe(what: str = "medium", /, *, input_size: Size = None) -> Result:
    """Print an architecture stage by stage, with multiply-adds and parameters.

    Args:
        what: A preset (pico nano tiny small medium large, detr-r50 sam-detr-r50 ...) or an
            architecture.json.
    """
    from supernet.counting import count_macs, count_params
    from supernet.heatdetr.input_size import parse_size
    from supernet.network import find_architecture

    from ..views.tables import describe_architecture

    architecture = find_architecture(what)
    if input_size is not None:
        architecture = architecture.with_(input_size=parse_size(input_size))
    if architecture.family == "heatdetr":
        describe_architecture(architecture)
    macs = count_macs(architecture)
    return {
        "macs_conv_linear": macs.conv_linear,
        "macs_attention": macs.attention,
        "params_deployed": count_params(architecture),
        "architecture": architecture.to_dict(),
    }


def devices() -> Result:
    """List the devices HEAT knows, and what this machine is."""
    from deploy.edge.session import installed_runtimes
    from latency_tables.device_file import load_devices
    from latency_tables.probe.machine import detect_cpu, detect_gpus

    from ..views.tables import list_devices

    known, cpu, gpus = load_devices(), detect_cpu(), detect_gpus()
    runtimes = installed_runtimes()
    list_devices(list(known.values()), cpu, gpus, runtimes)
    return {
        "devices": sorted(known),
        "detected": asdict(cpu),
        "gpus": [asdict(gpu) for gpu in gpus],
        "runtimes": runtimes,
    }


def doctor(*, device: DeviceName | None = None, out: Out = DEFAULT) -> Result:
    """Check what may keep HEAT from working here, and print the command that fixes it.

    Exits with 2 where something does not work; with --device also what that device needs.
    """
    from latency_tables.device_file import find_device
    from supernet.errors import UserError

    from ..stages.doctor import examine, show

    findings = examine(Workspace(out), find_device(device) if device else None)
    show(findings)
    wrong = [finding for finding in findings if finding.level == "wrong"]
    result = {
        "findings": [asdict(finding) for finding in findings],
        "warnings": sum(finding.level == "warning" for finding in findings),
        "wrong": len(wrong),
    }
    if wrong:
        first = wrong[0]
        raise UserError(f"{len(wrong)} wrong: {first.what}: {first.seen}: {first.fix}", result)
    return result


def report(*, data: Data = None, out: Out = DEFAULT) -> Result:
    """Write one offline HTML page of what the workspace holds."""
    from ..stages.report import write_report

    workspace = Workspace(out)
    root = data or recorded_data(workspace, "the report shows no images")
    found = find_judged(workspace, root) if root is not None else None
    return {"report": str(write_report(workspace, found))}
