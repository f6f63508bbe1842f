"""docs/metrics.md names exactly what is exposed, and docs/grafana.json asks for nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric

from swarmd.api.api_metrics import ApiCollector
from swarmd.api.dht_metrics import DhtCollector
from swarmd.api.exposition import Exposition
from swarmd.api.gateway import Gateway
from swarmd.api.node_metrics import NodeCollector
from swarmd.compute.model_folder import open_folder
from swarmd.dht.directory import DhtStatistics, Directory
from swarmd.node.parts import NodeParts
from tests.api.conftest import SPANS
from tests.docs.test_docs import ROOT, rows, section
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
BOARD = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))


class _Directory:
    """A DHT node that knows its contacts' clocks."""

    def statistics(self) -> DhtStatistics:
        return DhtStatistics(1, 2, 30, 40, {"rate": 3}, 5, 6, 7, clock_offset=-0.25)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """Every family of a node with all its parts, by the name that the text format gives it."""
    folder = open_folder(save_tiny("llama", tmp_path_factory.mktemp("metrics") / "llama"))

    async def work() -> dict[str, Metric]:
        local = LocalSwarm(folder)
        async with local.running(SPANS):
            gateway = Gateway(folder, local.pool, local.router)
            gateway.counts.requests["GET", "/healthz", 200] += 1
            peer = local.peers[0]
            announced: Any = SimpleNamespace(
                span=SPANS[0], peer_id=peer.identity.peer_id, folder=folder, dtype="float32",
                config=SimpleNamespace(quantization="none"),
            )  # fmt: skip
            parts = NodeParts(announced=announced, server=peer.server)
            directory = cast(Directory, _Directory())
            registry = Exposition(
                [
                    ApiCollector(gateway),
                    NodeCollector(parts, lambda: True),
                    DhtCollector(lambda: directory),
                ]
            ).registry
            return {_full_name(family): family for family in registry.collect()}

    return asyncio.run(work())


def _full_name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def described() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for heading in ("## A node", "## The API, and the client behind it", "## The DHT"):
        for name, kind, labels, meaning in rows(section(PAGE, heading)):
            assert meaning, f"{name} means nothing"
            yield name.strip("`"), kind, tuple(re.findall(r"`(\w+)`", labels))


def test_every_metric_is_described(exposed: dict[str, Metric]) -> None:
    found = {name for name in exposed if not name.startswith("process_")}
    table = {name: (kind, labels) for name, kind, labels in described()}
    assert set(table) == found
    for name, (kind, labels) in table.items():
        family = exposed[name]
        assert kind == {"info": "gauge"}.get(family.type, family.type), name
        assert family.samples, f"{name} has no value here, so nothing is known of its labels"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), name


@pytest.mark.skipif(sys.platform != "linux", reason="of the process only on Linux")
def test_the_process_is_described(exposed: dict[str, Metric]) -> None:
    named = set(re.findall(r"`(process_\w+)`", section(PAGE, "## The process")))
    assert named == {name for name in exposed if name.startswith("process_")}


def test_names_keep_prometheus_conventions(exposed: dict[str, Metric]) -> None:
    for name, family in exposed.items():
        assert re.fullmatch(r"(swarmd|process)_[a-z_]+", name)
        assert family.documentation
        assert "_total" not in family.name and "milli" not in name and "_us" not in name
        if family.type == "histogram":
            assert name.endswith("_seconds")


def test_histograms_are_whole(exposed: dict[str, Metric]) -> None:
    family = exposed["swarmd_node_step_seconds"]
    bounds = [
        s.labels["le"]
        for s in family.samples
        if s.labels.get("phase") == "decode" and "le" in s.labels
    ]
    assert bounds[-1] == "+Inf" and len(bounds) > 10
    assert {s.name.rsplit("_", 1)[1] for s in family.samples} == {"bucket", "count", "sum"}


def test_no_registry_is_shared() -> None:
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("swarmd")]
    assert isinstance(Exposition([]).registry, CollectorRegistry)
    Exposition([])  # two servers in one process do not collide


def test_the_dashboard_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_grafana.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_each_panel_asks_for_metrics_that_exist(exposed: dict[str, Metric]) -> None:
    samples = {s.name for family in exposed.values() for s in family.samples}
    labels = {key for family in exposed.values() for s in family.samples for key in s.labels} | {
        "instance"
    }
    asked: set[str] = set()
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    assert len(panels) > 15
    for panel in panels:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            names = set(re.findall(r"\b(?:swarmd|process)_\w+", target["expr"]))
            assert names, f"{panel['title']} asks for nothing"
            assert names <= samples, f"{panel['title']}: {names - samples}"
            asked |= names
            groups = ",".join(re.findall(r"by \(([^)]*)\)", target["expr"]))
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert {g.strip() for g in groups.split(",") if g} | used <= labels
            for opening, closing in ("()", "{}", "[]"):
                assert target["expr"].count(opening) == target["expr"].count(closing)
    (variable,) = BOARD["templating"]["list"]
    (name,) = re.findall(r"swarmd_\w+", variable["query"]["query"])
    assert name in samples
    assert "swarmd_node_step_seconds_bucket" in asked


def test_the_dashboard_can_be_imported() -> None:
    """What Grafana insists on: unique ids, places within the grid that do not overlap, a source."""
    assert BOARD["id"] is None and BOARD["schemaVersion"] >= 36
    (source,) = BOARD["__inputs"]
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == f"${{{source['name']}}}"
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs)
