import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy.edge.runtimes import open_session
from latency_tables.models import randomise
from supernet.errors import HeatError, UserError
from supernet.graph.batch import free_batch
from supernet.graph.folding import fold
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.channelwise import ChannelBlock
from supernet.heatdetr.operators.entries import Entry
from supernet.heatdetr.operators.original import OriginalBlock, kept_tokens
from supernet.heatdetr.operators.repcnn import RepCNN
from supernet.heatdetr.operators.window import (
    HEAD,
    KEY,
    VALUE,
    WINDOW,
    WindowBlock,
    padded,
    relative_index,
    shift_of,
)
from supernet.train.optimise import autocast_type

ENTRIES = [
    Entry("stem", 1, 3, 64, 65, 98),
    Entry("repcnn", 8, 32, 32, 13, 21),
    Entry("wmsa", 8, 64, 64, 13, 21),
    Entry("swmsa", 8, 64, 64, 16, 10),
    Entry("swmsa", 8, 32, 32, 14, 14),
    Entry("cw", 8, 64, 64, 13, 21),
    Entry("oa", 32, 64, 64, 9, 7),
    Entry("oa", 32, 64, 64, 9, 7, sparsity=0.18),
    Entry("act", 32, 64, 64, 9, 7, clusters=0.25),
    Entry("act", 32, 64, 64, 9, 7, clusters=1.0),
    Entry("enact", 32, 64, 64, 9, 7, window=6),
    Entry("pool", 32, 64, 64, 9, 7, window=6),
    Entry("pool", 64, 64, 64, 2, 2, window=6),
    Entry("down", 8, 32, 64, 13, 21),
    Entry("pool_down", 8, 32, 64, 13, 21),
    Entry("fuse", 8, 32, 64, 13, 21),
    Entry("lat1", 8, 32, 64, 13, 21),
    Entry("lat1_fine", 8, 32, 64, 13, 21),
    Entry("lat2", 16, 32, 64, 13, 21),
    Entry("ffn1", 16, 64, 64, 13, 21),
    Entry("ffn2", 16, 64, 64, 13, 21),
    Entry("up4", 32, 64, 64, 13, 21),
    Entry("t1_cw", 32, 64, 64, 7, 9, blocks=2),
    Entry("t1_oa", 32, 64, 64, 7, 9, blocks=1),
    Entry("t1_act", 32, 64, 64, 7, 9, clusters=0.5, blocks=1),
    Entry("t1_enact", 32, 64, 64, 7, 9, window=5, blocks=2),
    Entry("t1_pool", 32, 64, 64, 7, 9, window=4, blocks=1),
]

ATTENTION = ("wmsa", "swmsa", "cw", "oa", "act", "enact", "pool")


def random_statistics(module: nn.Module) -> None:
    """Give BatchNorm statistics of a trained network's kind, so that folding has work to do."""
    randomise(module)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)


def make(entry: Entry) -> tuple[nn.Module, list[torch.Tensor]]:
    operator = OPERATORS[entry.op]
    module = operator.build(entry)
    random_statistics(module)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5)  # the bias table starts at zero
    inputs = [torch.randn(1, *shape) for shape in operator.inputs(entry)]
    return module.eval(), inputs


def outputs_of(module: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        result = module(*inputs)
    return list(result) if isinstance(result, tuple) else [result]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_folding_keeps_the_function(entry: Entry) -> None:
    module, inputs = make(entry)
    folded = fold(nn.ModuleList([module]))[0]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    for before, after in zip(outputs_of(module, inputs), outputs_of(folded, inputs), strict=True):
        assert relative(after, before) <= 1e-5


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_closed_forms_match_the_module(entry: Entry) -> None:
    module, inputs = make(entry)
    operator = OPERATORS[entry.op]
    folded = fold(nn.ModuleList([module]))[0]
    assert sum(p.numel() for p in folded.parameters()) == operator.params(entry)
    shapes = [tuple(output.shape[1:]) for output in outputs_of(folded, inputs)]
    assert shapes == list(operator.outputs(entry))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_emitted_form_equals_torch(entry: Entry, runtime: str) -> None:
    module, inputs = make(entry)
    folded = fold(nn.ModuleList([module]))[0]
    graph = GraphWriter(GraphStyle.of(runtime))
    values = [graph.input(f"x{i}", tuple(x.shape)) for i, x in enumerate(inputs)]
    emitted = folded.emit(graph, *values)
    emitted = list(emitted) if isinstance(emitted, tuple) else [emitted]
    model = graph.model([(f"y{i}", value, "float32") for i, value in enumerate(emitted)])
    session = open_session(runtime, model.SerializeToString(), 1)
    found = session.run({f"x{i}": x.numpy() for i, x in enumerate(inputs)})
    for value, reference in zip(found, outputs_of(module, inputs), strict=True):
        assert relative(torch.from_numpy(value), reference) <= 1e-4


@pytest.mark.parametrize("op", ["wmsa", "swmsa", "cw", "oa"])
def test_fresh_blocks_are_the_identity(op: str) -> None:
    entry = Entry(op, 8, 64, 64, 10, 12)
    module = OPERATORS[op].build(entry).eval()
    x = torch.randn(2, 64, 10, 12)
    assert torch.equal(outputs_of(module, [x])[0], x)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.op in ATTENTION and e.sparsity == 0], ids=str
)
def test_training_keeps_channels_innermost(entry: Entry) -> None:
    """A gradient in another layout than its map makes BatchNorm several times slower.

    Only where tokens are left out (0.18) it comes back otherwise.
    """
    block = OPERATORS[entry.op].build(entry).to(memory_format=torch.channels_last)
    strange = []

    def look(module: nn.Module, _: object, output: torch.Tensor) -> None:
        def look_back(gradient: torch.Tensor) -> None:
            if not gradient.is_contiguous(memory_format=torch.channels_last):
                strange.append(module)

        output.register_hook(look_back)

    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(look)
    x = torch.randn(2, entry.d_in, entry.h, entry.w, requires_grad=True)
    y = block(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(torch.randn_like(y))
    assert not strange


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(13, 21), (16, 10), (14, 14), (7, 7)])
def test_window_attention_follows_the_brute_force_rule(
    size: tuple[int, int], shifted: bool
) -> None:
    """Pixel i attends to j iff floor((i - s) / 7) is equal in y and in x, s the shift."""
    height, width = size
    block = WindowBlock(64, shifted)
    nn.init.normal_(block.bias)
    qkv = torch.randn(1, 2 * HEAD, height, width)
    with torch.no_grad():
        found = block.attend(qkv)[0].flatten(1)
    shift = shift_of(height, width, shifted)
    assert shift == (3 if shifted and min(padded(height), padded(width)) > WINDOW else 0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    window_y = torch.div(y - shift, WINDOW, rounding_mode="floor")
    window_x = torch.div(x - shift, WINDOW, rounding_mode="floor")
    allowed = (window_y[:, None] == window_y) & (window_x[:, None] == window_x)
    dy, dx = y[:, None] - y, x[:, None] - x
    for head in range(2):
        q, k, v = qkv[0, head * HEAD : (head + 1) * HEAD].flatten(1).split((KEY, KEY, VALUE))
        index = ((dy + 6) * 13 + dx + 6).clamp(0, 168)
        scores = q.T @ k / 4 + block.bias[index, head]
        expected = v @ scores.masked_fill(~allowed, -torch.inf).softmax(1).T
        assert torch.allclose(found[head * VALUE : (head + 1) * VALUE], expected, atol=1e-5)


def test_relative_index_is_the_specs() -> None:
    index = relative_index()
    assert index[0, 0] == 6 * 13 + 6
    assert index[48, 0] == 12 * 13 + 12
    assert index[0, 48] == 0


def test_repcnn_folds_to_one_convolution() -> None:
    block = RepCNN(32)
    random_statistics(block)
    folded = block.eval().fold()
    convolutions = [part for part in folded.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 1
    x = torch.randn(1, 32, 9, 9)
    assert relative(outputs_of(folded, [x])[0], outputs_of(block, [x])[0]) <= 1e-5


def test_sparse_tokens_pass_unchanged() -> None:
    block = OriginalBlock(32, 0.5).eval()
    randomise(block)
    x = torch.randn(1, 32, 4, 5)
    changed = (outputs_of(block, [x])[0] != x).any(1)
    assert int(changed.sum()) == kept_tokens(20, 0.5) == 10


def test_kept_tokens_rounds_up() -> None:
    assert kept_tokens(273, 0.18) == 224
    assert kept_tokens(100, 0.18) == 82
    assert kept_tokens(1, 0.99) == 1


def test_constants_are_stored_once() -> None:
    graph = GraphWriter()
    assert graph.const(np.zeros(3, np.float32)) is graph.const(np.zeros(3, np.float32))
    assert graph.scalar(1.0).shape == ()


def test_channels_of_many_tokens_do_not_overflow_float16() -> None:
    torch.manual_seed(0)
    block = ChannelBlock(64).train()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 3.0)
    x = torch.randn(2, 1, 104, 168).expand(-1, 64, -1, -1) + 0.1 * torch.randn(2, 64, 104, 168)
    with torch.no_grad():
        exact = block(x)
        with torch.autocast("cpu", torch.float16):
            half = block(x)
    assert half.isfinite().all()
    assert float((half - exact).norm() / exact.norm()) < 0.05


def test_batches_of_any_size_have_no_constant_of_the_batchs_size() -> None:
    def model(size: int) -> onnx.ModelProto:
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [size, 2]) for n in "xy")
        bias = numpy_helper.from_array(np.zeros((size, 1), np.float32), "bias")
        node = helper.make_node("Add", ["x", "bias"], ["y"], name="add")
        return helper.make_model(helper.make_graph([node], "g", [x], [y], [bias]))

    with pytest.raises(HeatError, match="add has a constant of the batch's size"):
        free_batch(model(2), model(3))


def test_clusters_are_of_one_batch_size(unit: Architecture) -> None:
    network = Detector(unit.with_(global_block="act"))
    network.check_format("f32", raw=False, dynamic_batch=False)
    with pytest.raises(UserError, match="--dynamic-batch: the clusters of ACT"):
        network.check_format("f32", raw=False, dynamic_batch=True)


@pytest.mark.parametrize(("computed", "found"), [(True, torch.bfloat16), (False, torch.float16)])
def test_bfloat16_is_taken_where_the_gpu_computes_it(
    computed: bool, found: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older GPUs emulate it, and then say that they support it. No GPU is at hand."""

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or computed

    monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
    assert autocast_type("auto", torch.device("cuda")) is found
