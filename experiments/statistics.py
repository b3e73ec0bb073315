"""``python -m experiments.statistics``: counts, means, a histogram and a survival curve of sites.

The same machinery that averages models: what a site sends takes the place of a model, everything is
encrypted, and one round gives the mean over sites, weighted by their numbers of records. A share
times the number of all records is a count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import typer
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from experiments.cases import show
from experiments.federation import Clients
from fedsens import FederationKey, FedSensConfig
from fedsens.flower import LocalGrid, SelectiveEncryption, SelectiveEncryptionMod, install
from fedsens.keys import open_model
from fedsens.protocol import ProtectedModel

Array = NDArray[np.float64]
Shares = dict[str, Array]
AGES, MONTHS = np.arange(20, 101, 10), 60  # bounds of the histogram, and months of follow-up


@dataclass(frozen=True)
class Patients:
    """A site's records, which stay there.

    Attributes:
        age: years, within :data:`AGES`.
        months: until the event or the end of follow-up, whole, in [0, :data:`MONTHS`].
        event: whether it was the event.
    """

    age: Array
    months: NDArray[np.int64]
    event: NDArray[np.bool_]

    def shares(self) -> Shares:
        """What is sent: means over the records, each between 0 and 1."""
        age = (self.age - AGES[0]) / (AGES[-1] - AGES[0])
        month = np.arange(MONTHS + 1)[:, None]
        return {
            "age": np.array([age.mean(), (age**2).mean()]),
            "histogram": np.histogram(self.age, AGES)[0] / len(self.age),
            "at risk": (self.months >= month).mean(1),
            "events": ((self.months == month) & self.event).mean(1),
        }


def site_app(records: Callable[[Context], Patients]) -> ClientApp:
    """A site's app: it answers with its encrypted shares.

    Args:
        records: reads the records of the node that a context is of.

    Returns:
        The app.
    """
    app = ClientApp(mods=[SelectiveEncryptionMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        patients = records(context)
        arrays = ArrayRecord({name: FlowerArray(each) for name, each in patients.shares().items()})
        metrics = MetricRecord({"num-examples": len(patients.age)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    install(app, None, examples=lambda context: len(records(context).age))
    return app


def pool(grid: Grid) -> tuple[ProtectedModel, int]:
    """The server's part: add up what it cannot read.

    Args:
        grid: of the sites.

    Returns:
        The protected means of all shares, and the number of all records, which is no secret.
    """
    nothing = Patients(np.full(1, 20.0), np.zeros(1, np.int64), np.zeros(1, bool)).shares()
    start = ArrayRecord({name: FlowerArray(np.zeros_like(each)) for name, each in nothing.items()})
    counts: list[int] = []
    strategy = SelectiveEncryption(
        FedAvg(fraction_evaluate=0.0, train_metrics_aggr_fn=_counted(counts)),
        FedSensConfig(ratio=1.0, policy="all"),
    )
    strategy.start(grid, start, num_rounds=1)
    return strategy.model, sum(counts)


def statistics(shares: Mapping[str, NDArray[Any]], records: int) -> dict[str, Array]:
    """What a key holder makes of the means of all sites' shares.

    Args:
        shares: of :meth:`Patients.shares`, over all sites.
        records: how many there are in all.

    Returns:
        ``mean`` and ``deviation`` of the age in years, counts of the ``histogram``, and
        ``survival``, Kaplan and Meier's (1958) estimate after each month:
        S(t) = prod over u <= t of 1 - events(u) / at risk(u).
    """
    width = AGES[-1] - AGES[0]
    first, second = shares["age"]
    # As counts, whose errors rounding takes away: nobody at risk is nobody, not 1e-8 of one.
    at_risk, events = (np.rint(shares[name] * records) for name in ("at risk", "events"))
    return {
        "mean": AGES[0] + width * first,
        "deviation": width * np.sqrt(second - first**2),
        "histogram": np.rint(shares["histogram"] * records),
        "survival": np.cumprod(1 - events / np.maximum(at_risk, 1)),
    }


def draw_patients(site: int) -> Patients:
    """Records of an invented site; each has another number of them, and older or younger people.

    Args:
        site: its number, which is the seed.

    Returns:
        The records.
    """
    random = np.random.default_rng(site)
    age = np.clip(random.normal(55 + 4 * site, 12, 200 + 50 * site), AGES[0], AGES[-1])
    death, end = random.exponential(4000 / age), random.uniform(12, MONTHS, len(age))
    return Patients(age, np.minimum(death, end).astype(np.int64), death <= end)


def main(clients: Clients = 4) -> None:
    """Statistics of invented patients at several sites, beside those of all in one place."""
    app = site_app(lambda context: draw_patients(int(context.node_config["partition-id"])))
    with TemporaryDirectory(prefix="fedsens-") as folder:
        path = Path(folder) / "sites.key"
        FederationKey.generate().save(path)
        files = {"fedsens-key-file": str(path), "fedsens-state-dir": folder}
        node = {**files, "fedsens-min-ratio": 1.0}
        protected, records = pool(LocalGrid(app, clients, node_config=node))
        found = statistics(open_model(protected, FederationKey.load(path)), records)
    sites = [draw_patients(site) for site in range(clients)]
    whole = Patients(*(np.concatenate(each) for each in zip(*map(_columns, sites), strict=True)))
    true = statistics(whole.shares(), len(whole.age))
    show(
        f"{records} records of {clients} sites",
        ("", "encrypted", "in one place"),
        ((name, _told(found[name]), _told(true[name])) for name in found),
        "survival: after 12, 24, 36, 48 and 60 months",
    )


def _columns(site: Patients) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    return site.age, site.months, site.event


def _told(value: Array) -> str:
    shown = value[12::12] if len(np.atleast_1d(value)) > MONTHS else np.atleast_1d(value)
    return " ".join(f"{each:.6g}" for each in shown)


def _counted(counts: list[int]) -> Callable[[list[RecordDict], str], MetricRecord]:
    """The strategy's mean of metrics, which notes the sites' numbers of records on the way."""

    def aggregate(contents: list[RecordDict], weight: str) -> MetricRecord:
        counts.extend(int(content.metric_records["metrics"][weight]) for content in contents)  # type: ignore[arg-type]
        return MetricRecord()

    return aggregate


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    typer.run(main)
