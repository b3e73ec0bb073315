"""Record, in one forward pass, every operation that takes a parameter."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from fedsens.sensitivity._tolerance import own_faults_told
from fedsens.sensitivity.capture._registry import (
    OPS,
    Cotangent,
    Gradient,
    Rule,
    SampleAxis,
)

# operations through which a forward pass can depend on the values of a whole batch
READS = {
    "__bool__",
    "__float__",
    "__index__",
    "__int__",
    "allclose",
    "equal",
    "is_nonzero",
    "item",
    "numpy",
    "tolist",
}
# operations whose output's shape depends on the values of what they take
SHAPED = {
    "_pack_padded_sequence",
    "argwhere",
    "bincount",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique",
    "unique_consecutive",
}
# operations that take a tensor of numbers for its shape or type only
BLIND = {"dim", "numel", "size", "stride", "is_floating_point", "is_complex", "__len__"}
# nodes of torch's own views of a whole tensor, such as ``linear`` returns
RESHAPING = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}
DISPATCH_CHECKS = (
    "has_torch_function",
    "has_torch_function_unary",
    "has_torch_function_variadic",
)


@dataclass(frozen=True)
class ParameterView:
    """A parameter, or a view of it, as an operation takes it.

    Attributes:
        name: the parameter's name.
        view: size, stride and offset in the parameter's storage, or None for the whole.
    """

    name: str
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None

    def of(self, whole: Tensor) -> Tensor:
        """The same view of another contiguous tensor of the parameter's shape."""
        return whole if self.view is None else whole.as_strided(*self.view)


@dataclass(frozen=True)
class Operation:
    """One operation that took parameters.

    Attributes:
        index: which of the recorded operations it is.
        rule: how its per-sample gradients are computed.
        arguments: what it was called with, by name.
        args: the same as the rule takes it, without the cotangent: positional arguments,
        kwargs: and keyword arguments.
        targets: argument to the parameter it was, for the parameters to be measured.
        edge: where autograd delivers the gradient of its output, in one shape or another.
        shape: of its output.
        axis: where the samples are; None if no gradient has reached it yet (a block that is
            multiplied by zero), which is right as long as none does.
    """

    index: int
    rule: Rule
    arguments: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: dict[str, ParameterView]
    edge: GradientEdge
    shape: torch.Size
    axis: SampleAxis | None = None

    @property
    def names(self) -> set[str]:
        """Names of the parameters that it takes."""
        return {target.name for target in self.targets.values()}

    def without(self, names: Container[str]) -> Operation:
        """The same operation without some parameters; possibly without targets."""
        left = {a: t for a, t in self.targets.items() if t.name not in names}
        return self if len(left) == len(self.targets) else replace(self, targets=left)

    def from_cotangent(self, cotangent: Cotangent) -> dict[ParameterView, Gradient]:
        """Per-sample gradients of those of its parameters that its rule is about."""
        found = self.rule.gradients(cotangent, *self.args, **self.kwargs)
        return {view: found[name] for name, view in self.targets.items() if name in found}

    def without_rule(self, found: Container[ParameterView]) -> dict[str, str]:
        """Names of the parameters that its rule is not about, with the reason."""
        lacking = ((name, view) for name, view in self.targets.items() if view not in found)
        return {view.name: f"{self.rule.name} has no rule for {name}" for name, view in lacking}

    def gradients(
        self, d: Tensor, samples: int, dtype: torch.dtype, chosen: int | None = None
    ) -> dict[ParameterView, Gradient]:
        """Per-sample gradients in ``dtype`` from the gradient d of its output.

        Of K ``samples``, or of the ``chosen`` one of them.
        """
        assert self.axis is not None
        value = self.axis.first(d, samples)
        if chosen is None:
            return self.from_cotangent(Cotangent(value.to(dtype), self.axis))
        part = slice(chosen, chosen + 1)
        return self.from_cotangent(Cotangent(value[part].to(dtype), self.axis, (samples, part)))

    def wakes(self, d: Tensor | None) -> bool:
        """Whether a gradient reaches it though none had when its samples were looked for."""
        return self.axis is None and d is not None and bool(d.any())

    def gives(self, z: Tensor) -> bool:
        """Whether a tensor is its output, with nothing that changes gradients in between."""
        base, node = z._base, z.grad_fn
        if self.edge.node is node:
            return True
        # an autograd.Function may return a view, too: a hook, or a gradient that is turned around
        if base is None or node is None or node.name() not in RESHAPING:
            return False
        whole = base.numel() == z.numel() and z.is_contiguous()
        return whole and self.edge.node is base.grad_fn is node.next_functions[0][0]

    @property
    def takes_others(self) -> bool:
        """Whether it takes a tensor that is not one of the parameters."""
        return any(
            isinstance(v, Tensor) for n, v in self.arguments.items() if n not in self.targets
        )

    @property
    def signature(self) -> tuple[Any, ...]:
        """What is equal for the same operation in another batch."""
        return self.rule.name, tuple(self.targets.items()), len(self.shape)


def left_of(operations: Iterable[Operation], names: Container[str]) -> list[Operation]:
    """Operations without some parameters, those that have no other left out."""
    return [left for one in operations if (left := one.without(names)).targets]


class Recorder(TorchFunctionMode):
    """Records the uses of parameters while it is active.

    Gradient edges are taken at the operation, so an activation that later overwrites its input in
    place does no harm.

    Args:
        parameters: distinct parameters by name.
        samples: K.
        repeated: operations, by their index, to run once for every sample, because what
            they take is the same for all: an embedding of positions that is broadcast later.

    Attributes:
        operations: those that have a rule, in order.
        unknown: parameter's name to the problem, where an operation has none.
        reads: the forward pass looked at values of inputs that are integers, such as masks.
        decides: it made integers or truth values from real numbers and went on with them (the
            best expert, a threshold), so that samples can interact where no gradient shows it.
        shapes: it made tensors whose shape depends on values, such as ``x[mask]``.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        samples: int,
        repeated: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.samples = samples
        self.repeated = repeated
        self.operations: list[Operation] = []
        self.unknown: dict[str, str] = {}
        self.reads = self.decides = self.shapes = False
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._recorded: dict[int, Tensor] = {}  # kept, so that no other tensor gets the id

    @property
    def kind(self) -> Hashable:
        """What is equal for batches whose operations can be read in the same way."""
        return tuple(one.signature for one in self.operations), tuple(self.unknown), self.repeated

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and note it if it takes a parameter."""
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        taken = [tensor for tensor in tensors if self._parameter(tensor)]
        if not taken:
            # nothing to capture, but what it does with values says whether samples can interact
            output = func(*args, **kwargs)
            with own_faults_told("recording", self._names.values(), self.unknown):
                self._note_values(getattr(func, "__name__", ""), args, tensors, output)
            return output
        rule = OPS.get(func)
        if rule is None and _is_python(func):
            # the mode is off inside of this method; on again, it sees the operations within
            with self:
                return _opened(func)(*args, **kwargs)
        if rule is not None and len(self.operations) in self.repeated:
            args = tuple(map(self._repeat, args))
            kwargs = {name: self._repeat(value) for name, value in kwargs.items()}
        output = func(*args, **kwargs)
        results = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if output is None:  # written into another tensor, such as h[mask] = token
            results = [tensor for tensor in tensors if tensor.requires_grad]
        if not results or (rule is None and all(self._parameter(t) for t in results)):
            return output  # nothing differentiable, or views, which are seen where they are used
        names = [self._target(tensor).name for tensor in taken]
        operation = None
        with own_faults_told("recording", names, self.unknown):
            operation = None if rule is None else self._operation(rule, args, kwargs, output)
        if operation is None:
            problem = f"no rule for {getattr(func, '__name__', func)}"
            self.unknown.update(dict.fromkeys(names, problem))
        else:
            self.operations.append(operation)
            # an output is not a view of the parameter, though ``expand`` returns one
            self._recorded[id(output)] = output
        return output

    def _parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a tracked parameter or a differentiable view of one."""
        base = tensor if tensor._base is None else tensor._base
        return (
            id(base) in self._names
            and (base is tensor or base.is_contiguous())
            and tensor.requires_grad
            and id(tensor) not in self._recorded
        )

    def _note_values(
        self, name: str, args: tuple[Any, ...], tensors: list[Tensor], output: Any
    ) -> None:
        """Note how what an operation does depends on the values that it takes."""
        derived = any(_is_derived(tensor) for tensor in tensors)
        if name in READS:
            real = derived or any(tensor.is_floating_point() for tensor in tensors)
            self.decides |= real
            self.reads |= not real
            return
        if name in BLIND or not tensors:
            return
        self.decides |= derived
        self.shapes |= name in SHAPED or (name == "where" and len(tensors) == 1)
        self.shapes |= name == "__getitem__" and _by_mask(args[1])
        if derived or (any(t.is_floating_point() for t in tensors) and "_like" not in name):
            for tensor in _tensors(output):
                if not tensor.is_floating_point() and not name.startswith("new_"):
                    tensor._fedsens_derived = True  # type: ignore[attr-defined]

    def _repeat(self, value: Any) -> Any:
        """An argument that is the same for all samples, once for every sample."""
        if not isinstance(value, Tensor) or self._parameter(value):
            return value
        whole = value if 1 in value.shape else value[None]
        axis = whole.shape.index(1)
        return whole.expand(*whole.shape[:axis], self.samples, *whole.shape[axis + 1 :])

    def _target(self, tensor: Tensor) -> ParameterView:
        if tensor._base is None:
            return ParameterView(self._names[id(tensor)])
        view = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return ParameterView(self._names[id(tensor._base)], view)

    def _operation(
        self, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Operation | None:
        bound = rule.bind(args, kwargs)
        if bound is None or not isinstance(output, Tensor) or output.is_complex():
            return None  # sums and cotangents are real numbers
        arguments = bound.arguments
        inside = [v for v in arguments.values() if not isinstance(v, Tensor)]
        if any(self._parameter(tensor) for tensor in _tensors(inside)):
            return None  # a parameter in a list of tensors
        tensors = {name: v for name, v in arguments.items() if isinstance(v, Tensor)}
        targets = {n: self._target(v) for n, v in tensors.items() if self._parameter(v)}
        edge = get_gradient_edge(_source(output, tensors.values()))
        index, shape = len(self.operations), output.shape
        return Operation(index, rule, arguments, bound.args[1:], bound.kwargs, targets, edge, shape)


def _source(output: Tensor, inputs: Iterable[Tensor]) -> Tensor:
    """Where the gradient of an output arrives whatever happens to the output in place.

    ``linear`` with a bias returns, for inputs of three or more axes, a view of what ``addmm`` made.
    Writing into a view replaces its node in the graph, but not its base's.
    """
    base = output._base
    if base is None or base.grad_fn is None or any(base is tensor for tensor in inputs):
        return output
    whole = base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if whole else output


def _is_derived(tensor: Tensor) -> bool:
    """Whether integers or truth values were made from real numbers."""
    return getattr(tensor, "_fedsens_derived", False)


def _by_mask(index: Any) -> bool:
    """Whether an index has truth values in it."""
    return any(tensor.dtype in {torch.bool, torch.uint8} for tensor in _tensors(index))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _is_python(function: Any) -> bool:
    return isinstance(function, FunctionType) and function.__module__.startswith("torch.")


@cache
def _opened(function: FunctionType) -> FunctionType:
    """A torch function without its dispatch check, so that the mode sees what is inside.

    ``torch.nn.functional.multi_head_attention_forward`` and its like hand themselves over as a
    whole; the linear maps inside are what has rules.
    """
    scope = {**function.__globals__, **dict.fromkeys(DISPATCH_CHECKS, lambda *_: False)}
    opened = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened
