"""A network in, its wiring out: which convolution makes which feature channel, and which convolutions read it.

Channels that are added to each other, or read by the same convolution called twice, are one group: a decision about one
of them is a decision about all. The wiring comes from torch's symbolic trace and is followed channel by channel, so
that what a concatenation shifts and a slice takes is found in its place.

Fixed are the groups that nothing may be decided about: the image's own channels and those of the result, what a grouped
convolution reads and writes (it has no kernel per pair of channels that a score could be taken of), and channels that
no convolution reads.

Self-attention mixes places, not channels: it stands as one module whose query, key and value read the features, and
whose value adds to them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shared.enhance.todnet import SelfAttention
from shared.errors import ConfigError

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NORMS = (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
         nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip
_POINTWISE = (nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
              nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
              nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
              nn.Upsample, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d)  # fmt: skip
_KEEP = frozenset(
    ["relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "selu", "gelu", "silu", "mish", "sigmoid",
     "tanh", "softplus", "hardtanh", "clamp", "clip", "abs", "exp", "square", "sqrt", "neg", "instance_norm",
     "dropout", "avg_pool2d", "avg_pool3d", "max_pool2d", "max_pool3d", "boolean_dispatch", "interpolate",
     "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pad", "contiguous", "clone", "float", "to", "detach"]
)  # fmt: skip
"""Functions and methods of one tensor that leave every channel in its place."""
_TIE = frozenset(["add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div"])
_JOIN = frozenset(["cat", "concat", "concatenate"])
_SIZES = frozenset(["getattr", "size", "dim"])


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """Of one network; modules by name, groups of channels as numbers in 0..G-1 (int64 tensors)."""

    writes: Mapping[str, Tensor]
    """Convolution -> group of each channel that it makes."""
    scales: Mapping[str, Tensor]
    """Norm, or activation with a weight per channel -> group of each channel."""
    reads: Mapping[str, Tensor]
    """Convolution without groups -> group of each channel that it reads."""
    fixed_G: Tensor
    """True for groups that nothing is decided about."""
    first: tuple[str, ...]
    """Convolutions that read the image."""
    order: tuple[str, ...]
    """Modules with weights, in the order of computation."""

    @property
    def made(self) -> dict[str, Tensor]:
        """Every module with weights per channel -> the groups of the channels that leave it."""
        return {**self.writes, **self.scales}


def wiring(network: nn.Module, channels: int) -> Wiring:
    """Trace `network` for images of `channels` channels; ConfigError where it cannot be followed."""
    walk = _Walk(dict(network.named_modules()))
    for node in _traced(network).graph.nodes:
        walk.visit(node, channels)
    return walk.result()


def last_modules(network: nn.Module, wired: Wiring, blocks: int) -> list[str]:
    """From the convolution on that `blocks` others stand between the end and; all where there are not so many."""
    begins = [
        place
        for place, name in enumerate(wired.order)
        if isinstance(network.get_submodule(name), (*CONVOLUTIONS, SelfAttention))
    ]
    return list(wired.order[begins[-min(blocks + 1, len(begins))] :])


def _traced(network: nn.Module) -> GraphModule:
    from torch.fx import GraphModule, Tracer

    class Followed(Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, SelfAttention) or super().is_leaf_module(m, module_qualified_name)

    try:
        return GraphModule(network, Followed().trace(network))
    except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError):
        raise _lost("its own control flow") from None


@dataclass(slots=True)
class _Walk:
    """Down the graph, node by node; every value is the list of its channels."""

    modules: Mapping[str, nn.Module]
    parent: list[int] = field(default_factory=list)
    values: dict[Node, list[int] | None] = field(default_factory=dict)
    """None: no image but a size or a number."""
    writes: dict[str, list[int]] = field(default_factory=dict)
    scales: dict[str, list[int]] = field(default_factory=dict)
    reads: dict[str, list[int]] = field(default_factory=dict)
    fixed: list[int] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def visit(self, node: Node, channels: int) -> None:
        match node.op:
            case "placeholder":
                self.values[node] = None if self.image else self.new(channels)
                self.image = self.image or self.values[node] or []
            case "output":
                self.fixed += [channel for value in self.inputs(node) for channel in value]
            case "get_attr":
                self.values[node] = None
            case "call_module":
                self.values[node] = self.through(str(node.target), self.inputs(node))
            case _:
                self.values[node] = self.called(node)

    def inputs(self, node: Node) -> list[list[int]]:
        """The images among a node's arguments, in order."""
        found = (self.values.get(argument) for argument in node.all_input_nodes)
        return [value for value in found if value is not None]

    def through(self, name: str, inputs: Sequence[list[int]]) -> list[int]:
        module = self.modules[name]
        if len(inputs) != 1:
            raise _lost(type(module).__name__)
        (came,) = inputs
        if name not in self.order and any(True for _ in module.parameters()):
            self.order.append(name)
        if isinstance(module, CONVOLUTIONS):
            return self.convolved(name, module, came)
        if isinstance(module, SelfAttention):
            for part in ("query", "key", "value"):
                self.note(self.reads, f"{name}.{part}", came)
            self.note(self.writes, f"{name}.value", came)
            return came
        per_channel = isinstance(module, nn.PReLU) and module.num_parameters == len(came) > 1
        if isinstance(module, NORMS) or per_channel:
            if getattr(module, "weight", None) is not None:
                self.note(self.scales, name, came)
        elif not isinstance(module, (*_POINTWISE, nn.PReLU)):
            raise _lost(type(module).__name__)
        return came

    def convolved(self, name: str, module: nn.Module, came: list[int]) -> list[int]:
        if len(came) != module.in_channels:
            raise _lost(f"{type(module).__name__} of {module.in_channels} channels")
        out = self.writes[name] if name in self.writes else self.new(int(str(module.out_channels)))
        self.writes[name] = out
        if module.groups == 1:
            self.note(self.reads, name, came)
        else:
            self.fixed += [*came, *out]
        return out

    def called(self, node: Node) -> list[int] | None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        inputs = self.inputs(node)
        if not inputs or name in _SIZES:
            return None
        if name in _KEEP and len(inputs) == 1:
            return inputs[0]
        if name in _TIE:
            return self.tied(inputs)
        if name in _JOIN and (node.args[1:] or (node.kwargs.get("dim"),))[0] == 1:
            parts: Any = node.args[0]
            return [channel for part in parts for channel in self.values[part] or []]
        if node.target is operator.getitem and isinstance(node.args[1], tuple):
            index = node.args[1]
            if index[0] == slice(None) and isinstance(index[1], slice):
                return inputs[0][index[1]]
        raise _lost(name)

    def tied(self, inputs: Sequence[list[int]]) -> list[int]:
        for other in inputs[1:]:
            if len(other) != len(inputs[0]):
                raise _lost("a sum of images with different channels")
            for one, two in zip(inputs[0], other, strict=True):
                self.parent[self.root(two)] = self.root(one)
        return inputs[0]

    def note(self, where: dict[str, list[int]], name: str, channels: list[int]) -> None:
        """A module called twice has one weight for both."""
        where[name] = self.tied([where[name], channels]) if name in where else channels

    def new(self, count: int) -> list[int]:
        begin = len(self.parent)
        self.parent.extend(range(begin, begin + count))
        return self.parent[begin:]

    def root(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def result(self) -> Wiring:
        roots = [self.root(channel) for channel in range(len(self.parent))]
        number = {root: group for group, root in enumerate(dict.fromkeys(roots))}

        def groups(channels: Iterable[int]) -> Tensor:
            return torch.tensor([number[roots[channel]] for channel in channels], dtype=torch.int64)

        fixed_G = torch.ones(len(number), dtype=torch.bool)
        for read in self.reads.values():
            fixed_G[groups(read)] = False
        fixed_G[groups([*self.image, *self.fixed])] = True
        of_image = set(groups(self.image).tolist())
        reads = {name: groups(channels) for name, channels in self.reads.items()}
        return Wiring(
            {name: groups(channels) for name, channels in self.writes.items()},
            {name: groups(channels) for name, channels in self.scales.items()},
            reads,
            fixed_G,
            tuple(name for name, read in reads.items() if of_image & set(read.tolist())),
            tuple(self.order),
        )


def _lost(where: str) -> ConfigError:
    return ConfigError(
        f"the channels of this enhancer cannot be followed through {where or 'a function without a name'}; choose "
        "method=finetune, or an enhancer of convolutions, norms, sums and concatenations"
    )
