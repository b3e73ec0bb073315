"""A plan as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fedsens.planning.plan import Federation, Plan
from fedsens.tables import make_table


def plan_table(federation: Federation, plans: Sequence[Plan]) -> Table:
    """One line per ratio.

    Args:
        federation: what is planned.
        plans: its plans.

    Returns:
        The table.
    """
    return make_table(
        ("ratio", "MB up", "MB down", "link s", "CPU s", "GB, run", "error", "GiB"),
        [
            (
                f"{plan.ratio:.3g}",
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
        f"{federation.rounds} rounds, preset {federation.codec.name}",
        caption="MB, link s: a client and round, both ways. CPU s: all of them, a round. GiB: "
        "server / client, for float32. CPU and GiB without what training needs.",
        left=(),
    )
