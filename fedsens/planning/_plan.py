"""Bytes, seconds, error and security of a round, from the size of a model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from safetensors import SafetensorError, safe_open

from fedsens._tables import make_table
from fedsens.crypto import CkksParameters, Opens
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import mask_count
from fedsens.protocol import largest_count, mean_width, traffic

# Memory, fitted to what `fedsens bench scale` measures (which shows both side by side): most of it
# is copies of ciphertexts between SEAL, fedsens and Flower.
LIBRARIES = 275 * 2**20  # bytes of a process that has loaded them
SERVER_PLAIN, SERVER_ENCRYPTED = 24, 27  # bytes for each parameter, and more if it is encrypted
CLIENT_PLAIN, CLIENT_ENCRYPTED = 15, 18
# Freed blocks that a client's allocator keeps: bytes for each parameter, and at most.
KEPT, MOST_KEPT = 40, 110 * 2**20
ANSWER = 4  # bytes of each plaintext parameter of each client, which the inner strategy collects


@dataclass(frozen=True)
class Speed:
    """CPU seconds of server and one client in a round, without training.

    Attributes:
        client: whatever the model's size.
        keys: on top where something is encrypted, whatever the size.
        plain: for a parameter that is sent and averaged in plaintext.
        encrypted: for one that is encrypted, added and decrypted.
        split: on top, for every parameter of a model of which half is encrypted. At a share r it is
            4 r (1 - r) times that: picking single values costs most where the choice is a coin's.
    """

    client: float
    keys: float
    plain: float
    encrypted: float
    split: float


@dataclass(frozen=True)
class Federation:
    """What is planned.

    Attributes:
        parameters: P, entries of the model's state.
        clients: that take part in a round.
        rounds: of the run.
        codec: CKKS parameters.
        speed: of this machine.
        link: bits per second of a client's link, each way.
        withheld: whether clients keep what is not encrypted.
        width: bytes of a plaintext parameter, on average.
        buffers: bytes of the tensors that are no floating-point ones.
        opens: who opens the sums.
    """

    parameters: int
    clients: int
    rounds: int
    codec: CkksParameters
    speed: Speed
    link: float
    withheld: bool = False
    width: float = 4.0
    buffers: int = 0
    opens: Opens = "clients"


@dataclass(frozen=True)
class CostPlan:
    """The costs at one ratio. Bytes are one client's in one round.

    Attributes:
        ratio: share of the parameters that is encrypted.
        encrypted: k, how many these are.
        bytes_up: from the client, ciphertexts included.
        bytes_down: to the client, with the mask.
        plain_bytes: each way without encryption.
        cpu_seconds: of server and all clients in one round, without training and evaluation.
        link_seconds: to send both over the client's link.
        run_bytes: of all clients and rounds, both ways.
        server_memory: bytes of the server's process at most.
        client_memory: bytes of a client's process at most, without what training needs.
        error_bound: on every coordinate of the decrypted weighted mean.
        security_bits: by the HE standard; None where nothing is encrypted.
    """

    ratio: float
    encrypted: int
    bytes_up: int
    bytes_down: int
    plain_bytes: int
    cpu_seconds: float
    link_seconds: float
    run_bytes: int
    server_memory: int
    client_memory: int
    error_bound: float
    security_bits: int | None

    @property
    def round(self) -> tuple[int, float]:
        """Bytes of one client, both ways, and CPU seconds of all, in one round."""
        return self.bytes_up + self.bytes_down, self.cpu_seconds


@dataclass(frozen=True)
class Budget:
    """What a round may cost at most; None where nothing is asked.

    Attributes:
        megabytes: of one client, both ways.
        seconds: of one client's link and its share of the CPU time.
    """

    megabytes: float | None = None
    seconds: float | None = None

    def fits(self, plan: CostPlan, clients: int) -> bool:
        """Whether a plan for a number of clients is within the budget."""
        megabytes, seconds = _spent(plan, clients)
        return (self.megabytes is None or megabytes <= self.megabytes) and (
            self.seconds is None or seconds <= self.seconds
        )


def make_plan(federation: Federation, ratio: float) -> CostPlan:
    """Plan a federation at a ratio.

    Args:
        federation: what is planned.
        ratio: share of the parameters to encrypt.

    Returns:
        The plan.
    """
    return _plan(federation, ratio, mask_count(ratio, federation.parameters))


def largest_plan(federation: Federation, budget: Budget) -> CostPlan:
    """The plan with the largest ratio within a budget.

    Args:
        federation: what is planned.
        budget: what a round may cost.

    Returns:
        The plan, whose last ciphertext is full.

    Raises:
        ConfigurationError: nothing fits; the text says what it takes.
    """
    size, clients = federation.parameters, federation.clients

    def plan_of(count: int) -> CostPlan:
        return _plan(federation, count / size, count)

    # Ciphertexts of wide types are smaller than what they replace, so that all may fit alone.
    whole, plain = plan_of(size), plan_of(0)
    if budget.fits(whole, clients):
        return whole
    if not budget.fits(plain, clients):
        megabytes, seconds = min(_spent(each, clients) for each in (plain, whole))
        asked = [f"{budget.megabytes:g} MB"] if budget.megabytes is not None else []
        asked += [f"{budget.seconds:g} s"] if budget.seconds is not None else []
        raise ConfigurationError(
            f"expected a budget in which the model fits, {megabytes:.3g} MB and {seconds:.3g} s "
            f"for a client and round, got {' and '.join(asked)}; raise it, or take a smaller model"
        )
    degree = federation.codec.degree
    count = largest_count(size, degree, lambda count: budget.fits(plan_of(count), clients))
    return plan_of(count)


def _spent(plan: CostPlan, clients: int) -> tuple[float, float]:
    """Megabytes and seconds of one client in a round."""
    both_ways, cpu_seconds = plan.round
    return both_ways / 1e6, plan.link_seconds + cpu_seconds / clients


def _plan(federation: Federation, ratio: float, count: int) -> CostPlan:
    size, codec, clients = federation.parameters, federation.codec, federation.clients
    withheld = federation.withheld and count > 0
    up, down = traffic(
        codec,
        size,
        count,
        width=federation.width,
        buffers=federation.buffers,
        withheld=withheld,
        clients=clients,
        opens=federation.opens,
    )
    speed = federation.speed
    seconds = speed.client + speed.plain * (size - count) + speed.encrypted * count
    seconds += speed.keys if count else 0.0
    seconds += speed.split * 4 * count * (size - count) / size
    return CostPlan(
        ratio=ratio,
        encrypted=count,
        bytes_up=round(up),
        bytes_down=round(down),
        plain_bytes=round(
            traffic(codec, size, 0, width=federation.width, buffers=federation.buffers)[0]
        ),
        cpu_seconds=clients * seconds,
        link_seconds=8 * (up + down) / federation.link,
        run_bytes=round((up + down) * clients * federation.rounds),
        server_memory=server_memory(size, count, clients),
        client_memory=client_memory(size, count),
        error_bound=codec.error_bound(clients) if count else 0.0,
        security_bits=codec.security_bits if count else None,
    )


def server_memory(size: int, count: int, clients: int) -> int:
    """Bytes of the server's process at most, of P parameters of which k are encrypted."""
    held = SERVER_PLAIN * size + SERVER_ENCRYPTED * count
    return LIBRARIES + held + ANSWER * (size - count) * clients


def client_memory(size: int, count: int) -> int:
    """Bytes of a client's process at most, without what training itself needs."""
    held = CLIENT_PLAIN * size + CLIENT_ENCRYPTED * count
    return LIBRARIES + held + min(MOST_KEPT, KEPT * size)


def plan_table(
    federation: Federation, plans: Sequence[CostPlan], largest: CostPlan | None = None
) -> Table:
    """One line per ratio.

    Args:
        federation: what is planned.
        plans: its plans.
        largest: the one of them that is the largest within a budget, to mark it.

    Returns:
        The table.
    """
    return make_table(
        ("ratio", "MB up", "MB down", "link s", "CPU s", "GB, run", "error", "GiB"),
        [
            (
                f"{plan.ratio:.3g}" + (" (largest)" if plan is largest else ""),
                f"{plan.bytes_up / 1e6:.4g}",
                f"{plan.bytes_down / 1e6:.4g}",
                f"{plan.link_seconds:.3g}",
                f"{plan.cpu_seconds:.3g}",
                f"{plan.run_bytes / 1e9:.3g}",
                f"{plan.error_bound:.0e}" if plan.encrypted else "-",
                f"{plan.server_memory / 2**30:.2g} / {plan.client_memory / 2**30:.2g}",
            )
            for plan in plans
        ],
        title=f"{federation.parameters:,} parameters, {federation.clients} clients, "
        f"{federation.rounds} rounds, preset {federation.codec.name}, "
        f"{'the server opens' if federation.opens == 'server' else 'clients open'}",
        caption="MB, link s: a client and round, both ways. CPU s: all of them, a round. GiB: "
        "server / client, for float32. CPU and GiB without what training needs.",
        left=(),
    )


TYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides how many bytes it is.

    Attributes:
        parameters: P, floating-point entries of the model's state.
        width: bytes of one of them in plaintext, on average.
        buffers: bytes of the tensors that are no floating-point ones.
    """

    parameters: int
    width: float = 4.0
    buffers: int = 0

    @classmethod
    def of(cls, layout: ParameterLayout) -> ModelSize:
        """The size of a layout."""
        return cls(layout.size, mean_width(layout), layout.buffer_bytes)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> ModelSize:
        """The size of a state dict; LayoutError where it cannot be sent."""
        layout = ParameterLayout.from_state_dict(state)
        shapes = ((t.name, t.shape, _sent_as(t.dtype)) for t in layout.tensors)
        return cls.of(ParameterLayout.from_shapes(shapes))

    @classmethod
    def of_file(cls, path: Path) -> ModelSize:
        """The size of a safetensors file, of which only the header is read.

        Raises:
            ConfigurationError: it is no safetensors file, or holds types that no model is sent in.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not iterable
                tensors = [(n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()]
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(
                f"expected a safetensors file of weights in {path}, got {type(error).__name__}; "
                "give --model MODULE:FUNCTION or --parameters instead"
            ) from None
        unknown = [f"{name} ({dtype})" for name, _, dtype in tensors if dtype not in TYPES]
        if unknown:
            raise ConfigurationError(
                f"expected tensors of types among {', '.join(TYPES)} in {path}, got "
                f"{', '.join(unknown)}; convert them"
            )
        shapes = ((name, shape, _sent_as(TYPES[dtype])) for name, shape, dtype in tensors)
        return cls.of(ParameterLayout.from_shapes(shapes))


def _sent_as(dtype: str) -> str:
    """The type that a tensor is sent in, since NumPy has no bfloat16."""
    return "float32" if dtype == "bfloat16" else dtype
