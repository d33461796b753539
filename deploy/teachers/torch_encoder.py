"""Encoders that torch runs: a folder that transformers saved, or a model of timm."""

import hashlib
import importlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import UserError
from supernet.train.distributed import own_device

from .encoder import (
    DEFAULT_HW,
    IMAGENET,
    EncoderFacts,
    EncoderRequest,
    Images,
    Normalisation,
    choose,
    facts_of,
    image_like,
    named_shapes,
    normalised,
)
from .inputs import read_json, stated_values
from .maps import Maps


class TorchEncoder(ABC):
    """A torch module that maps an image [B, 3, H, W] to one output with features."""

    FEATURE = "features"
    """Name of the output."""

    def __init__(
        self,
        request: EncoderRequest,
        module: nn.Module,
        own_hw: tuple[int, int],
        stated: Normalisation | None,
    ) -> None:
        """Look at what the module returns for an image."""
        torch.set_num_threads(request.threads)
        self._device = own_device()
        self._module = module.eval().requires_grad_(False).to(self._device)
        if request.features not in ((), (self.FEATURE,)):
            raise UserError(
                f"--feature {','.join(request.features)}: of {request.source} the last features "
                "are learnt; other ones need an ONNX file"
            )
        input_hw = request.input_hw or own_hw
        self._normalisation = request.normalisation or stated or IMAGENET
        try:
            found = self._run(image_like(input_hw))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{request.source} does not run on an image of {input_hw[0]}x{input_hw[1]} "
                f"({reason}): --teacher-size gives another size"
            ) from None
        chosen = choose(named_shapes([self.FEATURE], [found]), request, input_hw)
        self._facts = facts_of(request, _digest(module), self._normalisation, input_hw, chosen)

    def facts(self) -> EncoderFacts:
        """Return what was found of it."""
        return self._facts

    def features(self, images_BHW3: Images) -> list[Maps]:
        """Return its features of images of its input size."""
        return [self._facts.maps[0].read(self._run(images_BHW3).float().cpu().numpy())]

    @abstractmethod
    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return the output with the features."""

    @torch.inference_mode()
    def _run(self, images_BHW3: Images) -> Tensor:
        inputs = torch.from_numpy(normalised(images_BHW3, self._normalisation))
        return self.forward(inputs.to(self._device))


class TransformersEncoder(TorchEncoder):
    """The vision model of a folder that `save_pretrained` of transformers wrote."""

    def __init__(self, request: EncoderRequest) -> None:
        """Load the folder; nothing is downloaded."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        folder = Path(request.source)
        if not (folder / "config.json").exists():
            raise UserError(
                f"--teacher {folder}: no config.json in it; a folder of transformers' "
                "save_pretrained is needed, an ONNX file, or timm:NAME"
            )
        transformers = _imported("transformers", request.source)
        try:
            module = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"transformers cannot load {folder}: {reason}") from None
        module = getattr(module, "vision_model", module)  # of CLIP, SigLIP: the rest reads text
        stated, size = _preprocessing(folder / "preprocessor_config.json")
        module = module.float()  # as its inputs are; folders may be saved in f16
        super().__init__(request, module, size or _image_size(module.config), stated)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return the last hidden state: tokens, or a map."""
        found: Tensor = self._module(pixel_values=image_B3HW).last_hidden_state
        return found


class TimmEncoder(TorchEncoder):
    """A model of timm, with weights that were downloaded before."""

    def __init__(self, request: EncoderRequest) -> None:
        """Load the model; nothing is downloaded."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        timm = _imported("timm", request.source)
        name = request.source.removeprefix("timm:")
        try:
            module = timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"timm cannot load {name} with weights ({reason}): download them first, HEAT uses "
                "no network"
            ) from None
        config = module.pretrained_cfg
        stated = Normalisation(tuple(config["mean"]), tuple(config["std"]))
        height, width = config["input_size"][1:]
        super().__init__(request, module, (height, width), stated)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return the features before pooling: tokens, or a map."""
        found: Tensor = self._module.forward_features(image_B3HW)  # type: ignore[operator]
        return found


def _imported(package: str, source: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"--teacher {source} needs {package}: pip install {package}") from None


def _preprocessing(path: Path) -> tuple[Normalisation | None, tuple[int, int] | None]:
    """Return the normalisation and the input size that a folder of transformers states."""
    facts = read_json(path)
    if facts is None:
        return None, None
    states = facts.get("image_mean") is not None or not facts.get("do_normalize", True)
    stated = stated_values(facts) if states else None
    size = facts.get("crop_size") or facts.get("size")
    if isinstance(size, int):
        return stated, (size, size)
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return stated, (size["height"], size["width"])
    return stated, None


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, (tuple, list)) else DEFAULT_HW


def _digest(module: nn.Module) -> str:
    """Return a hash of a module's weights."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
