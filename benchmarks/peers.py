"""Writes peers' networks with random weights as ONNX files, for `peers_cpu.py` to time.

    python -m venv peers && peers/bin/pip install torch==2.13.0 transformers onnxscript
    peers/bin/python benchmarks/peers.py --input-size 640x640 --out DIR

Needs an environment of its own, without HEAT: transformers, and for YOLO11 ultralytics (AGPL) with
the torchvision of that torch. A peer that cannot be built there is reported and left out. Nothing
is downloaded: random weights have the latency of trained ones. The outputs are the raw heads,
without NMS or top-k.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Builder = Callable[..., nn.Module]
"""Makes a network with random weights from an input size and a number of classes."""


class Raw(nn.Module):
    """A transformers detector that returns its logits and boxes."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Run it."""
        found = self.model(pixel_values=pixel_values)
        return found.logits, found.pred_boxes


def thawed(model: nn.Module) -> nn.Module:
    """Make a model's whole backbone trainable, normalisation included.

    transformers freezes it for pretrained weights; random ones must be trained.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                setattr(parent, name, nn.BatchNorm2d(len(child.weight)))
    for name, parameter in model.named_parameters():
        if "backbone." in name:
            parameter.requires_grad_(True)
    return model


def detr_r50(size: tuple[int, int], classes: int = 80) -> nn.Module:
    """DETR with a ResNet-50."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(out_features=["stage4"]),
        num_labels=classes,
    )
    return Raw(DetrForObjectDetection(config))


def rt_detr(depth: int) -> Builder:
    """RT-DETR with a ResNet-vd of 18 or 50 layers, as its authors configure them."""

    def build(size: tuple[int, int], classes: int = 80) -> nn.Module:
        from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

        if depth == 18:
            backbone = RTDetrResNetConfig(
                layer_type="basic",
                hidden_sizes=[64, 128, 256, 512],
                depths=[2, 2, 2, 2],
                out_features=["stage2", "stage3", "stage4"],
            )
            config = RTDetrConfig(
                backbone_config=backbone,
                encoder_in_channels=[128, 256, 512],
                hidden_expansion=0.5,
                decoder_layers=3,
                anchor_image_size=list(size),
                num_labels=classes,
            )
        else:
            config = RTDetrConfig(anchor_image_size=list(size), num_labels=classes)
        return Raw(RTDetrForObjectDetection(config))

    return build


def d_fine(kind: str) -> Builder:
    """D-FINE-N or -S, as its authors configure them."""

    def build(size: tuple[int, int], classes: int = 80) -> nn.Module:
        from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

        nano = kind == "n"
        backbone = HGNetV2Config(
            stem_channels=[3, 16, 16],
            stage_in_channels=[16, 64, 256, 512],
            stage_mid_channels=[16, 32, 64, 128],
            stage_out_channels=[64, 256, 512, 1024],
            hidden_sizes=[64, 256, 512, 1024],
            stage_num_blocks=[1, 1, 2, 1],
            stage_downsample=[False, True, True, True],
            stage_light_block=[False, False, True, True],
            stage_kernel_size=[3, 3, 5, 5],
            stage_numb_of_layers=[3, 3, 3, 3],
            out_features=["stage3", "stage4"] if nano else ["stage2", "stage3", "stage4"],
            use_learnable_affine_block=True,
        )
        config = DFineConfig(
            backbone_config=backbone,
            encoder_in_channels=[512, 1024] if nano else [256, 512, 1024],
            feat_strides=[16, 32] if nano else [8, 16, 32],
            encode_proj_layers=[1] if nano else [2],
            encoder_hidden_dim=128 if nano else 256,
            encoder_ffn_dim=512 if nano else 1024,
            decoder_in_channels=[128, 128] if nano else [256, 256, 256],
            d_model=128 if nano else 256,
            decoder_ffn_dim=512 if nano else 1024,
            decoder_n_points=[6, 6] if nano else [3, 6, 3],
            num_feature_levels=2 if nano else 3,
            hidden_expansion=0.34 if nano else 0.5,
            depth_mult=0.5 if nano else 0.34,
            decoder_layers=3,
            anchor_image_size=list(size),
            num_labels=classes,
        )
        return Raw(DFineForObjectDetection(config))

    return build


def yolos_tiny(size: tuple[int, int], classes: int = 80) -> nn.Module:
    """YOLOS with a DeiT-tiny."""
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        hidden_size=192,
        num_attention_heads=3,
        num_hidden_layers=12,
        intermediate_size=768,
        image_size=list(size),
        num_labels=classes,
    )
    return Raw(YolosForObjectDetection(config))


def yolo(name: str) -> Builder:
    """YOLO11 of ultralytics, its head in export form."""

    def build(size: tuple[int, int], classes: int = 80) -> nn.Module:
        from ultralytics.nn.tasks import DetectionModel

        model = DetectionModel(f"{name}.yaml", nc=classes, verbose=False).eval().fuse()
        head = model.model[-1]
        head.export, head.format = True, "onnx"
        return model

    return build


PEERS: dict[str, Builder] = {
    "detr-r50": detr_r50,
    "rt-detr-r18": rt_detr(18),
    "rt-detr-r50": rt_detr(50),
    "d-fine-n": d_fine("n"),
    "d-fine-s": d_fine("s"),
    "yolos-tiny": yolos_tiny,
    "yolo11n": yolo("yolo11n"),
    "yolo11s": yolo("yolo11s"),
}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input-size", default="640x640", help="HxW")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(PEERS))
    options = parser.parse_args()
    height, width = map(int, options.input_size.split("x"))
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        torch.manual_seed(0)
        path = options.out / f"{name}-{height}x{width}.onnx"
        if path.exists():
            continue
        temporary = path.with_suffix(".tmp")
        try:
            model = PEERS[name]((height, width)).eval()
            image = torch.rand(1, 3, height, width)
            with torch.inference_mode():
                torch.onnx.export(
                    model, (image,), str(temporary), opset_version=18, dynamo=False, verbose=False
                )
            temporary.replace(path)
            print(f"{path.name}: {path.stat().st_size / 2**20:.0f} MiB")
        except Exception as error:
            temporary.unlink(missing_ok=True)
            print(f"{name} left out: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)


if __name__ == "__main__":
    main()
