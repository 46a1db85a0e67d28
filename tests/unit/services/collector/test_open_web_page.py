"""The browser example of the guide to the open web, run by Node against a collector whose page is of another origin."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from collector_app import open_collector

from streams.events import MODELS

PAGE = Path(__file__).parents[4] / "docs" / "how-to/application/face-the-open-web.md"
SHOP = "https://shop.example"
# Node has no page: beacons are what browsers make of them (text/plain, with the page's origin), and so are preflights.
BROWSER = """
const asNode = globalThis.fetch;
globalThis.fetch = async (url, options) => {
  const type = options.headers?.["Content-Type"];
  if (type === "application/json") {
    const asked = { Origin: "ORIGIN", "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "authorization,content-type" };
    const preflight = await asNode(url, { method: "OPTIONS", headers: asked });
    if (preflight.headers.get("access-control-allow-origin") !== "ORIGIN") throw new Error("blocked by CORS");
  }
  return asNode(url, { ...options, headers: { ...options.headers, Origin: "ORIGIN" } });
};
const beacons = [];
Object.defineProperty(globalThis, "navigator", { configurable: true, value: {
  sendBeacon: (url, body) => { beacons.push(fetch(url, { method: "POST", body })); return true; } } });
"""
RUN = """
const status = await send([click]);
sendLast([{ ...click, event_id: "last" }]);
console.log(JSON.stringify({ status, beacon: (await beacons[0]).status }));
"""


def example(url: str, origin: str) -> str:
    """The page's only script, with the address of a real collector in the place of its own."""
    script: str
    [script] = re.findall(r"```js\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert "https://events.shop.example" in script
    return BROWSER.replace("ORIGIN", origin) + script.replace("https://events.shop.example", url) + RUN


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node on this machine")
@pytest.mark.parametrize("origin", [SHOP, "https://evil.example"])
def test_the_example_sends_its_events(tmp_path: Path, origin: str) -> None:
    with open_collector(tmp_path / "spool.db", cors_origins=(SHOP,)) as collector:
        script = tmp_path / "page.mjs"
        script.write_text(example(str(collector.client.base_url).rstrip("/"), origin))
        node = shutil.which("node") or "node"
        run = subprocess.run([node, script], capture_output=True, text=True, timeout=60)
        waiting = collector.spool.oldest(max_events=9, max_bytes=10**6)
        if origin == SHOP:
            assert json.loads(run.stdout) == {"status": 202, "beacon": 202}, run.stderr
            events = [MODELS[event.kind].model_validate_json(event.value) for _, event in waiting]
            assert [event.KIND for event in events] == ["click", "click"]
            assert events[1].event_id == "last"
        else:
            assert "blocked by CORS" in run.stderr
            assert waiting == []
