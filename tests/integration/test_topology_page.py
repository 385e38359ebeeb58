"""The page of topoviz in a real browser, without a network."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from dlcalc.report.topology_page import DrawnRing, ring_colour, topology_page
from dlcalc.topology.fabric import Fabric, FabricNode
from tests.clos_fabrics import clos, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def rings_of(fabric, job, n_rings):
    nodes = fabric.of_job(job)
    size = len(nodes) // n_rings
    return [
        DrawnRing(f"stage {i}", tuple(node.name for node in nodes[i * size : (i + 1) * size]), i * size)
        for i in range(n_rings)
    ]


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of a fabric; whatever it complains of, or asks a network for, fails the test."""
    contexts, complaints = [], []

    def open_page(text, name="page"):
        (tmp_path / "graph.html").write_text(text, encoding="utf-8")
        context = browser.new_context(offline=True, viewport={"width": 1600, "height": 950})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda ask: ask.url.startswith(("file:", "data:")) or complaints.append(ask.url))
        page.goto((tmp_path / "graph.html").as_uri())
        page.wait_for_function("window.topology")
        if folder := os.environ.get("DLCALC_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{name}.png")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


SMALL = running(clos(spines=2, leaves=5, leaf_nodes=4, busy=0.4), "llama", 16)
LARGE = running(clos(spines=4, leaves=16, leaf_nodes=16, busy=0.3), "llama", 256)


def drawn(page):
    return page.evaluate("topology.nodes.get().map((one) => one.id)")


def spot(page, name):
    """Where the middle of a node is on the screen."""
    place = page.evaluate("(id) => topology.network.canvasToDOM(topology.network.getPosition(id))", name)
    frame = page.locator("#graph").bounding_box()
    return frame["x"] + place["x"], frame["y"] + place["y"]


@pytest.mark.parametrize(("fabric", "n_rings"), [(SMALL, 2), (LARGE, 8)], ids=["40", "1024"])
def test_every_node_and_switch_is_there_and_none_lies_on_another(opened, fabric, n_rings):
    page = opened(topology_page(fabric, rings_of(fabric, "llama", n_rings), title="a fabric"), f"n{len(fabric.nodes)}")
    wanted = {f"node {node.name}" for node in fabric.nodes} | {f"switch {switch}" for switch in fabric.tier}
    assert set(drawn(page)) == wanted
    boxes = page.evaluate(
        "topology.nodes.get().filter((one) => one.id.startsWith('node'))"
        ".map((one) => topology.network.getBoundingBox(one.id)).sort((a, b) => a.left - b.left)"
    )
    for i, box in enumerate(boxes):
        for other in boxes[i + 1 :]:
            if other["left"] >= box["right"]:
                break
            assert other["top"] >= box["bottom"] or other["bottom"] <= box["top"], (box, other)
    x, y = zip(
        *page.evaluate(
            "topology.nodes.get().map((one) => topology.network.canvasToDOM(topology.network.getPosition(one.id)))"
            ".map((place) => [place.x, place.y])"
        ),
        strict=True,
    )
    assert 0 <= min(x) <= max(x) <= 1330  # all of it is in view, beside the legend
    assert 0 <= min(y) <= max(y) <= 900


def test_a_ring_is_closed_and_has_the_colour_of_its_stage(opened):
    page = opened(topology_page(SMALL, rings_of(SMALL, "llama", 2), title="a fabric"))
    edges = page.evaluate("topology.edges.get().map((one) => [one.from, one.to, one.color.color])")
    for position, ring in enumerate(rings_of(SMALL, "llama", 2)):
        of_ring = [edge for edge in edges if edge[2] == ring_colour(position)]
        assert len(of_ring) == 8
        assert {end for edge in of_ring for end in edge[:2]} == {f"node {name}" for name in ring.nodes}
    assert ring_colour(0) != ring_colour(1)


def test_hovering_says_instance_zone_and_rank(opened):
    page = opened(topology_page(SMALL, rings_of(SMALL, "llama", 2), title="a fabric"))
    node = SMALL.of_job("llama")[11]
    page.mouse.move(*spot(page, f"node {node.name}"))
    page.wait_for_function("document.querySelector('.vis-tooltip')?.style.visibility === 'visible'")
    said = page.locator(".vis-tooltip").inner_text()
    for words in (node.name, node.host, "p5.48xlarge", "us-east-1a", "stage 1, node rank 11", "job llama", "spine-"):
        assert words in said


def test_a_click_folds_a_switch_and_another_opens_it(opened):
    page = opened(topology_page(LARGE, rings_of(LARGE, "llama", 8), title="a fabric"))
    n_before = len(drawn(page))
    page.mouse.click(*spot(page, "switch spine-00"))
    page.wait_for_function("topology.folded.size === 1")
    gone = {f"switch leaf-00-{leaf:02}" for leaf in range(16)}
    shown = set(drawn(page))
    assert not gone & shown
    assert len(shown) == n_before - 16 - 256
    ends = set(page.evaluate("topology.edges.get().flatMap((one) => [one.from, one.to])"))
    assert ends <= shown
    label = page.evaluate("topology.nodes.get('switch spine-00').label")
    held = [node for node in LARGE.nodes if "spine-00" in node.switches]
    assert f"{sum(node.job == 'llama' for node in held)} job" in label
    page.mouse.click(*spot(page, "switch spine-00"))
    page.wait_for_function("topology.folded.size === 0")
    assert len(drawn(page)) == n_before


def test_a_tier_is_folded_at_once(opened):
    page = opened(topology_page(LARGE, rings_of(LARGE, "llama", 8), title="a fabric"))
    page.get_by_role("button", name="Fold tier 0").click()
    assert len(drawn(page)) == 64 + 4 + 1
    page.get_by_role("button", name="Open all").click()
    assert len(drawn(page)) == 1024 + 64 + 4 + 1


def test_search_finds_a_node_and_opens_what_hides_it(opened):
    page = opened(topology_page(LARGE, rings_of(LARGE, "llama", 8), title="a fabric"))
    page.get_by_role("button", name="Fold tier 1").click()
    page.locator("#search").fill("n-03-07-05")
    assert page.locator("#found").inner_text() == "1 found; Enter goes on"
    page.locator("#search").press("Enter")
    (node,) = (node for node in LARGE.nodes if node.host == "n-03-07-05")
    assert page.evaluate("topology.network.getSelectedNodes()") == [f"node {node.name}"]
    assert page.evaluate("[...topology.folded].includes('switch spine-03')") is False
    page.locator("#search").fill("nobody")
    assert page.locator("#found").inner_text() == "nothing found"


def test_a_ring_can_be_hidden(opened):
    page = opened(topology_page(SMALL, rings_of(SMALL, "llama", 2), title="a fabric"))
    page.locator("[data-ring='1']").uncheck()
    assert set(page.evaluate("topology.edges.get().map((one) => one.color.color)")) == {ring_colour(0)}
    page.locator("#rings").uncheck()
    assert page.evaluate("topology.edges.length") == 0


def test_names_from_a_file_are_text_and_nothing_else(opened):
    evil = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>"
    fabric = Fabric(
        (
            FabricNode(evil, (evil,), host=evil, zone=evil, state="busy", job=evil, rank=0),
            FabricNode("no data", why_unusable=evil, state="unusable"),
        )
    )
    page = opened(topology_page(fabric, [DrawnRing(evil, (evil,))], title=evil, remarks=(evil,)))
    assert set(drawn(page)) == {f"node {evil}", f"switch {evil}", "node no data"}
    page.mouse.move(*spot(page, f"node {evil}"))
    page.wait_for_function("document.querySelector('.vis-tooltip')?.style.visibility === 'visible'")
    assert page.evaluate("window.evil") is None


def test_a_fabric_with_nothing_in_it_is_a_page(opened):
    assert drawn(opened(topology_page(Fabric(()), [], title="empty"))) == []


def test_the_page_names_no_address_that_it_would_load():
    text = topology_page(SMALL, [], title="a fabric")
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:", text) == []
