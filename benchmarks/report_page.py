"""How large the report of a study of more than a million rows is, how long it takes to make, and to open.

    python benchmarks/report_page.py

Searches 180 million plans and keeps also those that memory alone refuses. Opening is measured in an installed Chromium,
without a network: when the words are painted, when the page has loaded, when all charts are drawn, and the processor
time of all of it, which does not depend on what else the machine does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from dlcalc.results.reader import open_result
from dlcalc.workflows.report import study_report, write_page
from dlcalc.workflows.search import run_search
from dlcalc.workflows.search_summary import peak_rss_bytes

SPACE = """
study: million
model: llama3-70b
hardware: h100
cluster: {devices: 512}
recipe: {seq_len: 8192, global_batch: 1024, precision: bf16, framework: megatron, token_budget: 15e12}
keep: all
space: {tp: full, cp: full, pp: full, micro_batch: full, recompute_layers: full, zero_stage: full, overlap_grad: full,
  overlap_param: full, offload_optimizer: full, vpp: full, schedule: full, overlap_tp: full, recompute: full,
  offload_layers: full}
"""
TIMES = """() => {
  const at = (name) => Math.round(performance.getEntriesByName(name)[0].startTime);
  const timing = performance.getEntriesByType("navigation")[0];
  return {words: at("first-contentful-paint"), loaded: Math.round(timing.loadEventEnd), drawn: at("drawn")};
}"""


def opened(file: Path) -> None:
    """Open the page three times, each in a browser of its own, so that nothing is warm."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        for _ in range(3):
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-drawn]", state="attached")
            metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
            ms = page.evaluate(TIMES)
            print(
                f"words after {ms['words']} ms, loaded after {ms['loaded']} ms, all charts after {ms['drawn']} ms; "
                f"{metrics['TaskDuration']:.2f} s of processor time"
            )
            browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "million.yaml"
        space.write_text(SPACE)
        run_search(space, out=Path(folder) / "million")
        n_rows = sum(shard.n_rows for shard in open_result(Path(folder) / "million").shards())
        before = peak_rss_bytes()
        began = time.perf_counter()
        facts, timeline = study_report(Path(folder) / "million")
        page = Path(folder) / "report.html"
        write_page(page, facts, timeline)
        seconds = time.perf_counter() - began
        searched_s = facts.sensitivity.seconds if facts.sensitivity else 0.0
        megabytes = page.stat().st_size / 1e6
        print(f"{n_rows:,} rows: {megabytes:.1f} MB in {seconds:.1f} s, {searched_s:.1f} s of it searching")
        print(f"peak memory {peak_rss_bytes() / 2**20:,.0f} MiB, {before / 2**20:,.0f} after the search")
        opened(page)


if __name__ == "__main__":
    main()
