"""Statistics over sites: as of all records in one place, and the server reads none of them."""

import numpy as np
import pytest

from experiments.statistics import MONTHS, Patients, draw_patients, pool, site_app, statistics
from fedsens import FederationKey
from fedsens.flower import LocalGrid
from fedsens.keys import open_model


def kaplan_meier(patients):
    """As in the paper, month by month."""
    survival, curve = 1.0, []
    for month in range(MONTHS + 1):
        at_risk = sum(patients.months >= month)
        events = sum((patients.months == month) & patients.event)
        survival *= 1 - events / at_risk if at_risk else 1
        curve.append(survival)
    return curve


def pooled(sites, tmp_path):
    path = tmp_path / "key"
    FederationKey.generate().save(path)
    app = site_app(lambda context: sites[int(context.node_config["partition-id"])])
    files = {"fedsens-key-file": str(path), "fedsens-state-dir": str(tmp_path / "state")}
    node = {**files, "fedsens-min-ratio": 1.0}
    protected, records = pool(LocalGrid(app, len(sites), node_config=node))
    assert all(np.isnan(array).all() for array in protected.visible().values())
    return statistics(open_model(protected, FederationKey.load(path)), records), records


# Neighbours: sites of one record, a site without events, and months at which nobody is left.
@pytest.mark.parametrize(
    "sites",
    [
        [draw_patients(site) for site in range(3)],
        [Patients(np.array([20.0 + 40 * n]), np.array([n]), np.array([n == 1])) for n in range(3)],
    ],
)
def test_statistics_are_those_of_all_records_in_one_place(sites, tmp_path):
    found, records = pooled(sites, tmp_path)
    ages = np.concatenate([site.age for site in sites])
    whole = Patients(
        ages,
        np.concatenate([site.months for site in sites]),
        np.concatenate([site.event for site in sites]),
    )
    assert records == len(ages)
    assert found["histogram"].tolist() == np.histogram(ages, np.arange(20, 101, 10))[0].tolist()
    assert found["survival"] == pytest.approx(kaplan_meier(whole), abs=1e-12)
    assert found["mean"] == pytest.approx(ages.mean(), abs=1e-4)
    assert found["deviation"] == pytest.approx(ages.std(), abs=1e-3)
