"""The dashboard shows every metric that extraction publishes, and no other."""

import json
import re
from pathlib import Path

from cluster.pool.extraction_meter import COUNTERS, GAUGES

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "extraction.json"


def test_dashboard_shows_the_published_metrics() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    shown = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    # Ray puts its own prefix before all names, and Prometheus counters end in `_total`.
    published = {f"ray_fusechat_{name}_total" for name in COUNTERS} | {f"ray_fusechat_{name}" for name in GAUGES}
    assert set(re.findall(r"ray_fusechat_\w+", shown)) == published


def test_dashboard_panels_do_not_overlap_and_are_described() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not own & cells and place["x"] + place["w"] <= 24 and panel["description"]
        cells |= own
