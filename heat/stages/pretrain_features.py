"""`heat pretrain --teacher`: backbone, SAM and SCM learn the features of a frozen encoder."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self, cast

import torch

from deploy.teachers.encoder import EncoderFacts, EncoderRequest, Images
from deploy.teachers.maps import Maps
from deploy.teachers.open_encoder import open_encoder
from deploy.teachers.worker import Worker
from supernet.checkpoint import read_info
from supernet.data.unlabelled import UnlabelledImages
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.train.distributed import first_process
from supernet.train.feature_cache import FeatureCache
from supernet.train.feature_key import CacheKey, keyed, within
from supernet.train.feature_student import FeatureStudent, TeacherMap
from supernet.train.feature_task import FeatureTask
from supernet.train.feature_views import AREA, teacher_views
from supernet.train.loop import run_task
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running
from supernet.train.threads import threads_now

from ..records import Result
from ..workspace import Workspace
from .training_record import record_training

CACHE_GB = 16.0
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Caching:
    """Which features are computed, and how many are kept."""

    views: int
    """Views of each image."""
    cache_gb: float
    """Disk space."""

    @classmethod
    def of(cls, views: int | None, cache_gb: float | None) -> Self:
        """Check what was asked for."""
        if views is not None and not 1 <= views <= 100:
            raise UserError(f"--views {views}: 1 to 100")
        if cache_gb is not None and not 0 < cache_gb < math.inf:
            raise UserError(f"--cache-gb {cache_gb}: a number above 0 is needed")
        return cls(views or 1, cache_gb or CACHE_GB)


class _Streamed:
    """An encoder in a worker process, as `FeatureCache.fill` wants its teacher."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def stream(self, images: Iterable[Images]) -> Iterator[list[Maps]]:
        """Yield the maps of each batch."""
        return self.worker.stream("features", images)


def pretrain_features(
    workspace: Workspace,
    request: EncoderRequest,
    images: UnlabelledImages,
    architecture: Architecture,
    config: TrainConfig,
    running: Running,
    caching: Caching,
) -> Result:
    """Compute the encoder's features, or take them from the cache, and learn them."""
    with ExitStack() as stack:
        stack.enter_context(workspace.training(workspace.pretrain))
        request = replace(request, threads=threads_now(request.threads))
        teachers = stack.enter_context(ExitStack())
        worker = teachers.enter_context(Worker(open_encoder, request))
        found: EncoderFacts = worker.ask("facts")
        key = _key(found, caching)
        kept, others = within(images, key, caching.cache_gb)
        folder = workspace.pretrain / "features"
        cache = FeatureCache(folder, keyed(key, kept), kept)
        if first_process():
            print(f"teacher: {found}", file=sys.stderr, flush=True)
            views = teacher_views(kept, cache.key, cache.check(restart=running.restart).present())
            cache.fill(_Streamed(worker), views)
        if others is None:
            teachers.close()
        while not cache.complete:  # the first process fills it
            time.sleep(POLL_S)
        if first_process() and cache.broken:
            print(
                f"warning: {len(cache.broken)} of {len(kept.paths)} images cannot be decoded and "
                f"are left out, listed in {folder / 'broken.txt'}",
                file=sys.stderr,
            )
        torch.manual_seed(config.seed)
        network = FeatureStudent(architecture, _seen_by_student(found, architecture.input_size))
        network.trunk.set_drop_path(config.drop_path)
        task = FeatureTask(network, cache, others, _Streamed(worker))
        start = {"teacher": cache.key.digest, "features": str(cache.key.maps)}
        done = run_task(task, config, workspace.pretrain, running, start=start)

    def facts() -> Result:
        terms = cast(Mapping[str, float], read_info(done.checkpoint).history[-1])
        return {
            "images": task.num_images,
            "computed_each_epoch": len(task.others),
            "broken_images": len(cache.broken),
            "data": [str(root.absolute()) for root in images.roots],
            "teacher": request.source,
            "features": [str(one) for one in found.maps],
            "cosines": {one.name: round(1 - terms[one.name], 4) for one in network.lessons},
            "cache_gb": round(cache.rows * cache.key.bytes_an_image / caching.views / 1e9, 3),
        }

    return record_training(workspace, "pretrain", workspace.pretrain, done, facts)


def _key(found: EncoderFacts, caching: Caching) -> CacheKey:
    """Return the key of a cache, of no images yet."""
    return CacheKey(
        teacher=found.name,
        digest=found.digest,
        input_hw=found.input_hw,
        normalisation=str(found.normalisation),
        maps=tuple((one.name, one.channels, *one.cells_hw) for one in found.maps),
        images="",
        num_images=0,
        views=caching.views,
    )


def _seen_by_student(found: EncoderFacts, input_hw: tuple[int, int]) -> list[TeacherMap]:
    """Return the teacher's maps with their strides on the student's input, on average."""
    scale = max(input_hw) / max(found.input_hw) / (sum(AREA) / 2) ** 0.5
    return [TeacherMap(one.channels, one.stride(found.input_hw) * scale) for one in found.maps]
