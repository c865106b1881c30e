"""The report's table in the terminal."""

from raft_tasks.reporting.metrics import Metrics
from raft_tasks.reporting.wording import label, percent

WIDTH = 100  # columns at most


def print_table(metrics: Metrics) -> None:
    """Print one table per domain: scores, changes against plain SFT, retention, weight distance and training time."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    reference = metrics["reference"]
    for domain, scored in metrics["domains"].items():
        intervals = f"{100 * metrics['confidence']:g} % intervals"
        title = f"{domain}: percent, with {intervals}; l2: distance to the base before a merge; s: of training"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        table.add_column("method", no_wrap=True)
        measures = [name for name in ("domain_acc", "general") if name in scored["measures"]]
        for measure in measures:
            table.add_column(measure.removesuffix("_acc"), no_wrap=measure == "domain_acc")
            if reference:
                table.add_column(f"against {label(reference)}")
        if "general" in measures:
            table.add_column("retention", min_width=len("retention"))
        table.add_column("l2", justify="right")
        table.add_column("s", justify="right")
        for method, row in scored["methods"].items():
            cells = []
            for measure in measures:
                cells.append(percent(row["scores"][measure]))
                if reference:
                    cells.append(percent(row.get("against_reference", {}).get(measure), signed=True))
            if "general" in measures:
                cells.append(percent(row.get("retention", {}).get("general")))
            training = row.get("training")
            cost = (f"{training['relative_l2']:.4f}", f"{training['seconds']:.0f}") if training else ("–", "–")
            shown = (f"[bold]{value}[/]\n[dim]{interval}[/]" for value, interval in cells)
            table.add_row(label(method), *shown, *cost)
        console.print(table)
