"""Counts networks whose times others have published, for `published` in the device files.

    python benchmarks/published.py

Needs transformers. Prints, for one image, the fields `gmacs`, `maps_m`, `weights_m` and `nodes` of
each network: multiply-adds of convolutions and matrix products, numbers that these read and write,
parameters, and the nodes of a graph whose BatchNorm is part of its convolutions. The last line is
one JSON object.
"""

import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    ResNetForImageClassification,
)

RESNETS = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
CHEAP = (nn.ReLU, nn.LayerNorm, nn.MaxPool2d, nn.AdaptiveAvgPool2d)


class Counts:
    """What the hooks have counted."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.macs = self.maps = self.nodes = 0

    def heavy(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Count a convolution or a linear map."""
        weight = module.weight
        self.macs += output.numel() * weight[0].numel()
        self.maps += inputs[0].numel() + output.numel()
        self.nodes += 1

    def cheap(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Count an operator without weights."""
        self.nodes += 1


def counted(
    network: nn.Module, *inputs: Tensor, skips: int, attentions: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """Count one pass; `skips` additions of a skip, and products of attention [MACs, numbers]."""
    counts = Counts()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(counts.heavy)
        elif isinstance(module, CHEAP):
            module.register_forward_hook(counts.cheap)
    with torch.inference_mode():
        network.eval()(*inputs)
    return {
        "gmacs": round((counts.macs + attentions[0]) / 1e9, 3),
        "maps_m": round((counts.maps + attentions[1]) / 1e6, 2),
        "weights_m": round(sum(p.numel() for p in network.parameters()) / 1e6, 2),
        "nodes": counts.nodes + skips,
    }


def resnet(depth: int) -> dict[str, Any]:
    """Count a ResNet at 224x224."""
    layers = RESNETS[depth]
    basic = depth < 50
    sizes = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
    config = ResNetConfig(
        layer_type="basic" if basic else "bottleneck",
        depths=layers,
        hidden_sizes=sizes,
        num_labels=1000,
    )
    with torch.device("meta"):
        network = ResNetForImageClassification(config)
        return counted(network, torch.empty(1, 3, 224, 224), skips=sum(layers))


def detr(height: int, width: int) -> dict[str, Any]:
    """Count DETR with a ResNet-50; attention's two products are added by their formula."""
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(out_features=["stage4"]),
        num_labels=91,
    )
    tokens, queries, width_of = (height // 32) * (width // 32), config.num_queries, config.d_model
    pairs = config.encoder_layers * tokens**2
    pairs += config.decoder_layers * (queries**2 + queries * tokens)
    heads = config.encoder_attention_heads
    found = counted(
        DetrForObjectDetection(config),
        torch.rand(1, 3, height, width),
        skips=sum(RESNETS[50]) + 2 * config.encoder_layers + 3 * config.decoder_layers,
        attentions=(2 * pairs * width_of, 4 * pairs * heads),
    )
    # Scores, softmax and values of each attention.
    found["nodes"] += 3 * (config.encoder_layers + 2 * config.decoder_layers)
    return found


def main() -> None:
    """Count them all."""
    found = {f"resnet-{depth} 224x224": resnet(depth) for depth in RESNETS}
    found["detr-r50 800x1344"] = detr(800, 1344)
    for name, counts in found.items():
        print(f"{name}: {counts}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
