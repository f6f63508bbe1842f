"""Write docs/grafana.json, a dashboard of swarmd's metrics.

python scripts/make_grafana.py            write the file
python scripts/make_grafana.py --check    exit with 1 if the file is not what would be written
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "grafana.json"
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
"""Of a panel, in Grafana's grid of 24 columns."""
CHOSEN = '{instance=~"$instance"}'
Queries = list[tuple[str, str]]
Row = tuple[str, list[tuple[str, str, Queries]]]


def rate(name: str, by: str = "instance") -> str:
    return f"sum by ({by}) (rate({name}{CHOSEN}[$__rate_interval]))"


def value(name: str) -> str:
    return name + CHOSEN


def quantiles(name: str, by: str = "") -> Queries:
    """The median and the 95th percentile of a histogram."""
    groups, legend = ("le, " + by, f"{{{{{by}}}}} ") if by else ("le", "")
    return [
        (f"histogram_quantile({q}, {rate(name + '_bucket', groups)})", f"{legend}p{round(100 * q)}")
        for q in (0.5, 0.95)
    ]


HERE = "{{instance}}"
ROWS: list[Row] = [
    (
        "Nodes",
        [
            ("Ready", "none", [(value("swarmd_node_ready"), HERE)]),
            ("Open sessions", "none", [(value("swarmd_node_open_sessions"), HERE)]),
            ("Tokens through the blocks", "ops", [(rate("swarmd_node_tokens_total"), HERE)]),
            ("Time of a step", "s", quantiles("swarmd_node_step_seconds", "phase")),
            ("Time in the queue", "s", quantiles("swarmd_node_queue_seconds", "phase")),
            ("Steps that wait or run", "none", [(value("swarmd_engine_queue_steps"), HERE)]),
            (
                "Attention cache in use",
                "percentunit",
                [
                    (
                        f"1 - {value('swarmd_engine_kv_free_tokens')}"
                        f" / {value('swarmd_engine_kv_tokens')}",
                        HERE,
                    )
                ],
            ),
            (
                "Payload",
                "Bps",
                [(rate("swarmd_node_payload_bytes_total", "instance, direction"),
                  "{{instance}} {{direction}}")],
            ),
            ("Refusals", "ops", [(rate("swarmd_node_refusals_total"), HERE)]),
            ("Connections", "none", [(value("swarmd_node_open_connections"), HERE)]),
            (
                "Known beginnings of prompts",
                "percentunit",
                [
                    (
                        f"{rate('swarmd_engine_prefix_found_tokens_total')}"
                        f" / {rate('swarmd_engine_prefix_asked_tokens_total')}",
                        HERE,
                    )
                ],
            ),
            ("Resident memory", "bytes", [(value("process_resident_memory_bytes"), HERE)]),
        ],
    ),
    (
        "API",
        [
            (
                "Requests",
                "reqps",
                [(rate("swarmd_api_requests_total", "route, status"), "{{route}} {{status}}")],
            ),
            ("New tokens", "ops", [(rate("swarmd_api_completion_tokens_total"), HERE)]),
            ("Time to the first token", "s", quantiles("swarmd_api_first_token_seconds")),
            (
                "Answers under way",
                "none",
                [
                    (value("swarmd_api_answers"), HERE),
                    (value("swarmd_api_answers_limit"), "{{instance}} limit"),
                ],
            ),
            (
                "Hops replaced, streams broken",
                "ops",
                [
                    (rate("swarmd_client_recoveries_total"), "{{instance}} replaced"),
                    (rate("swarmd_api_broken_streams_total"), "{{instance}} broken"),
                ],
            ),
            (
                "Bans",
                "none",
                [
                    (value("swarmd_client_banned_peers"), "{{instance}} banned now"),
                    (f"increase(swarmd_client_bans_total{CHOSEN}[1h])", "{{instance}} an hour"),
                ],
            ),
        ],
    ),
    (
        "DHT",
        [
            (
                "Traffic",
                "Bps",
                [(rate("swarmd_dht_bytes_total", "instance, direction"),
                  "{{instance}} {{direction}}")],
            ),
            (
                "Dropped datagrams",
                "ops",
                [(rate("swarmd_dht_dropped_datagrams_total", "reason"), "{{reason}}")],
            ),
            (
                "Contacts and records",
                "none",
                [
                    (value("swarmd_dht_contacts"), "{{instance}} contacts"),
                    (value("swarmd_dht_records"), "{{instance}} records"),
                ],
            ),
        ],
    ),
]  # fmt: skip


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        found.append(
            {
                "id": len(found) + 1, "type": "row", "title": title, "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": [],
            }
        )  # fmt: skip
        y += 1
        for at, (name, unit, queries) in enumerate(row):
            found.append(
                {
                    "id": len(found) + 1,
                    "type": "timeseries",
                    "title": name,
                    "datasource": SOURCE,
                    "gridPos": {
                        "x": WIDTH * (at % COLUMNS),
                        "y": y + HEIGHT * (at // COLUMNS),
                        "w": WIDTH,
                        "h": HEIGHT,
                    },
                    "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                    "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
                    "targets": [
                        {"refId": "ABCDEF"[i], "datasource": SOURCE, "expr": expr,
                         "legendFormat": legend}
                        for i, (expr, legend) in enumerate(queries)
                    ],
                }
            )  # fmt: skip
        y += HEIGHT * -(-len(row) // COLUMNS)
    return found


def make_page() -> str:
    """The whole file."""
    instance = {
        "name": "instance", "label": "Instance", "type": "query", "datasource": SOURCE,
        "query": {
            "query": "label_values(swarmd_api_answers, instance)", "refId": "instances",
        },
        "multi": True, "includeAll": True, "allValue": ".*", "refresh": 2, "sort": 1,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip
    board = {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource",
                "pluginId": "prometheus", "pluginName": "Prometheus", "description": "",
            }
        ],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.0.0"},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            {"type": "panel", "id": "timeseries", "name": "Time series", "version": ""},
        ],
        "id": None, "uid": "swarmd", "title": "swarmd", "tags": ["swarmd"], "schemaVersion": 38,
        "version": 1, "editable": True, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"}, "annotations": {"list": []}, "links": [],
        "templating": {"list": [instance]}, "panels": panels(),
    }  # fmt: skip
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    page = make_page()
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"docs/{PAGE.name} is stale; run: python scripts/make_grafana.py", file=sys.stderr)
        return 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
