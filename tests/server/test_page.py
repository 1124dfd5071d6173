"""The chat page, in headless Chromium through its WebDriver. Set TACO_PAGE_SHOTS=DIR to keep screenshots."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from conftest import Server, serving
from fake_engine import FakeEngine, cache_stats, fake_handle, speculation_stats
from waiting import PATIENCE, wait_until

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs Chromium and its driver: apt install chromium chromium-driver",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the WebDriver standard's name of an element reference


class Browser:
    """As much of the WebDriver protocol as these tests need."""

    def __init__(self, profile: Path) -> None:
        assert DRIVER is not None
        log = profile.with_name("driver.log")
        with log.open("wb") as file:
            self._process = subprocess.Popen([DRIVER, "--port=0"], stdout=file, stderr=file)
        port = wait_until(
            lambda: re.search(r"started successfully on port (\d+)", log.read_text()), log.read_text
        )
        self._base = f"http://127.0.0.1:{port[1]}"
        flags = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
            --disable-background-networking --disable-component-update --disable-dev-shm-usage""".split()
        wanted = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": [*flags, f"--user-data-dir={profile}"]},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        answer = self._post("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{answer['sessionId']}"

    def _post(self, path: str, body: Any) -> Any:
        answer = requests.post(self._base + path, json=body, timeout=60).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(answer["message"])
        return answer

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._post("/execute/sync", {"script": script, "args": []})

    def element(self, selector: str) -> str:
        return f"/element/{self._post('/element', {'using': 'css selector', 'value': selector})[ELEMENT]}"

    def click(self, selector: str) -> None:
        self._post(self.element(selector) + "/click", {})

    def type(self, selector: str, text: str) -> None:
        self._post(self.element(selector) + "/value", {"text": text})

    def wait(self, condition: str) -> Any:
        return wait_until(lambda: self.run(f"return {condition}"), condition)

    def texts(self, selector: str) -> list[str]:
        return self.run(f"return [...document.querySelectorAll({selector!r})].map(e => e.textContent)")

    def size(self, width: int, height: int) -> None:
        self._post("/window/rect", {"width": width, "height": height})

    def shot(self, name: str) -> None:
        if folder := os.environ.get("TACO_PAGE_SHOTS"):
            data = requests.get(self._base + "/screenshot", timeout=60).json()["value"]
            (Path(folder) / name).write_bytes(base64.b64decode(data))

    def problems(self) -> list[str]:
        """Console messages of the kind that a broken policy or script leaves."""
        entries = self._post("/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] == "SEVERE"]

    def close(self) -> None:
        requests.delete(self._base, timeout=60)
        self._process.terminate()
        self._process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(fake_handle(FakeEngine(step_seconds=0.02)), api_key=["open sesame"]) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: Any) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()


def test_policy_and_no_outside_assets(server: Server) -> None:
    r = requests.get(server.url + "/", timeout=60)
    policy = r.headers["Content-Security-Policy"]
    assert r.status_code == 200 and "default-src 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy and "frame-ancestors 'none'" in policy
    assert not re.search(
        r"""(?:src|href)\s*=\s*["']?(?!data:)\w""", r.text
    )  # nothing is loaded from anywhere
    assert "http://" not in r.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in r.text
    assert not re.search(r"\son\w+=|style=|innerHTML|insertAdjacentHTML|document\.write|eval\(", r.text)
    assert "localStorage" not in r.text and "sessionStorage" not in r.text and "cookie" not in r.text


@needs_browser
def test_chat(server: Server, browser: Browser) -> None:
    browser.size(1100, 800)
    browser.open(server.url + "/")
    browser.wait("document.querySelector('#status.ok')")
    assert "API key" in browser.texts("#model")[0]
    browser.shot("empty.png")

    browser.type("#prompt", "Hello\n")  # Enter sends; without a key the settings open
    browser.wait("document.querySelector('#settings').open")
    browser.wait("document.querySelector('article.assistant .error')")
    assert "API key" in browser.texts("article.assistant .error")[0]
    browser.type("#key", "open sesame")
    browser.shot("settings.png")
    browser.click("#close-settings")
    browser.wait("document.querySelector('#model').textContent === 'fake'")
    browser.click("#new")
    assert browser.texts("article") == []

    browser.run("document.querySelector('#max-tokens').value = '40'")
    browser.run("document.querySelector('#temperature').value = '0.3'")
    browser.run("document.querySelector('#system').value = 'Be brief.'")
    browser.type("#prompt", "<img src=x onerror=window.pwned=1><script>window.pwned=2</script>\n")
    browser.wait("document.querySelector('article.assistant:not(.busy) .note button')")
    assert browser.texts("article.user .body")[0].startswith("<img src=x")
    assert browser.run("return window.pwned === undefined && document.images.length === 0")
    assert browser.texts("article.assistant p") == [" ".join(f"w{i}" for i in range(40))]
    note = browser.texts("article.assistant .note span")[0]
    assert re.match(r"40 tokens · [\d.]+ tokens/s · first after \d+ ms · cut at the token limit", note), note
    sent = server.handle.core.submitted[-1]
    assert bytes(sent.prompt).startswith(b"<system>Be brief.<user><img src=x")
    assert sent.params.max_tokens == 40 and sent.params.temperature == pytest.approx(0.3)

    browser.type("#prompt", "And again\n")  # the whole conversation goes along
    browser.wait("document.querySelectorAll('article.assistant:not(.busy) .note button').length === 2")
    assert b"<assistant> w0 w1" in bytes(server.handle.core.submitted[-1].prompt)
    browser.shot("chat.png")

    browser.run("show(document.querySelector('.assistant .body'), 'a\\n```py\\n<b>x</b>\\n```\\nz')")
    assert browser.texts("article.assistant pre") == ["<b>x</b>"]

    browser.run("document.querySelector('#max-tokens').value = '1500'")
    browser.type("#prompt", "Long\n")
    browser.wait("document.querySelector('article.busy .body').textContent.length > 50")
    browser.click("#stop")
    browser.wait("!document.querySelector('article.busy')")
    assert "stopped" in browser.texts("article.assistant .note span")[-1]
    engine = server.handle.core
    wait_until(lambda: not engine.stats().running, "the engine goes on after Stop")
    assert engine.aborted == [engine.submitted[-1].id]  # not at its end
    # The two requests that the key was missing for are the only thing the console may complain about.
    assert [p for p in browser.problems() if "401" not in p] == []


@needs_browser
def test_speculation_is_shown_while_there_is_some(server: Server, browser: Browser) -> None:
    browser.open(server.url + "/")
    browser.run("document.querySelector('#key').value = 'open sesame'")
    browser.run("return connect()")
    browser.wait("document.querySelector('#model').textContent === 'fake'")
    browser.run("return watchSpeed()")
    assert browser.run("return speculates === false")
    hidden = "document.querySelector('#speed').getBoundingClientRect().height === 0"
    assert browser.run(f"return {hidden}")

    engine = FakeEngine()
    handle = fake_handle(engine, speculation=SimpleNamespace(method="lookahead"))
    with serving(handle) as other:
        browser.open(other.url + "/")
        browser.wait("document.querySelector('#model').textContent === 'fake'")
        browser.run("return watchSpeed()")
        assert browser.run(f"return {hidden}")  # nothing has been drafted so far
        engine.speculation = speculation_stats()
        browser.wait(f"!({hidden})")
        assert browser.texts("#speedup") == ["1.75× as fast as without drafts, 2.60 tokens a step"]
        assert browser.texts("#acceptance") == ["53% of 60 drafted tokens accepted"]
        bars = browser.run("return [...document.querySelectorAll('#hits i')].map(e => e.offsetHeight)")
        assert len(bars) == 17 and bars[0] == 22 and bars[1] == bars[3] == 5 and bars[2] == 1
        said = browser.run("return document.querySelector('#hits').getAttribute('aria-label')")
        assert (
            said.startswith("Steps by accepted tokens: 0: 13, 1: 3, 2: 0, 3: 3") and "16 or more: 1" in said
        )
        browser.shot("speculation.png")
        engine.speculation.realised_speedup = 0.0  # not known
        browser.run("return watchSpeed()")
        browser.wait("document.querySelector('#speedup').textContent === '2.60 tokens a step'")
        # Before the key was given, the first server told its 401.
        assert [problem for problem in browser.problems() if "401" not in problem] == []


@needs_browser
def test_the_cache_is_shown_while_there_is_one(server: Server, browser: Browser) -> None:
    engine = FakeEngine(step_seconds=0.005)
    args = SimpleNamespace(
        max_logprobs=20, scheduling_policy="priority", block_size=16, enable_prefix_caching=True
    )
    tiers = SimpleNamespace(block_bytes=1 << 20, host_blocks=500, disk_blocks=4000)
    with serving(fake_handle(engine, args=args, tiers=tiers)) as other:
        browser.open(other.url + "/")
        browser.wait("document.querySelector('#model').textContent === 'fake'")
        browser.run("return watchCache()")
        hidden = "document.querySelector('#cache').getBoundingClientRect().height === 0"
        assert browser.run(f"return {hidden}")  # nothing has been looked up so far
        engine.prefix_cache = cache_stats()
        engine.hottest = [
            SimpleNamespace(digest="<b>" + "0f" * 31, tokens=4096, accesses=12, tier="host"),
        ]
        browser.wait(f"!({hidden})")
        assert browser.texts("#cache-hits") == ["65% of 1,000 prompt tokens from the cache"]
        assert browser.texts("#cache-blocks") == [
            "30 blocks on the device, 80 blocks in memory, 200 blocks on disk"
        ]
        widths = browser.run("return [...document.querySelectorAll('#hit-bar i')].map(e => e.offsetWidth)")
        assert widths == [48, 24, 6]
        said = browser.run("return document.querySelector('#hit-bar').getAttribute('aria-label')")
        assert said == "Prompt tokens from device: 40%, memory: 20%, disk: 5%"
        browser.click("#open-cache")
        assert browser.texts("#tiers tbody td") == [
            "device", "30", "1,000", "30", "400", "memory", "80", "500", "80", "200",
            "disk", "200", "4,000", "200", "50",
        ]  # fmt: skip
        assert browser.texts("#hottest tbody td") == ["<b>0f0f0f0f0f0f0", "4,096", "12", "memory"]
        browser.shot("cache.png")
        browser.click("#close-cache")
        assert browser.run("return !document.querySelector('#cache-details').open")
        engine.prefix_cache.capacity["disk"] = 0
        browser.run("return watchCache()")
        browser.wait("document.querySelector('#cache-blocks').textContent.endsWith('disk (switched off)')")

        engine.cached_tokens = 12
        browser.run("document.querySelector('#max-tokens').value = '3'")
        browser.type("#prompt", "Hello\n")
        browser.wait("document.querySelector('article.assistant:not(.busy) .note button')")
        note = browser.texts("article.assistant .note span")[0]
        assert "12 of 22 prompt tokens cached" in note, note
        assert browser.problems() == []
    browser.open(server.url + "/")
    browser.run("document.querySelector('#key').value = 'open sesame'")
    browser.run("return connect()")
    browser.wait("document.querySelector('#model').textContent === 'fake'")
    browser.run("return watchCache()")
    assert browser.run("return caches === false")
    browser.problems()


@needs_browser
def test_on_a_phone_and_in_the_dark(server: Server, browser: Browser) -> None:
    browser._post(
        "/goog/cdp/execute",
        {"cmd": "Emulation.setDeviceMetricsOverride",
         "params": {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True}},
    )  # fmt: skip
    browser._post(
        "/goog/cdp/execute",
        {
            "cmd": "Emulation.setEmulatedMedia",
            "params": {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
        },
    )
    browser.open(server.url + "/")
    browser.wait("document.querySelector('#status.ok')")
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(23, 21, 19)"
    small = """[...document.querySelectorAll('header button, #form button:not(.hidden), #prompt')]
        .filter(e => e.getBoundingClientRect().height < 40).length"""
    assert browser.run(f"return {small}") == 0, "buttons too small for a thumb"
    browser.run("document.querySelector('#key').value = 'open sesame'")
    browser.run("document.querySelector('#max-tokens').value = '60'")
    browser.type("#prompt", "How tall is the Eiffel Tower, and when was it built?\n")
    browser.wait("document.querySelector('article.assistant:not(.busy) .note button')")
    browser.shot("phone.png")


@needs_browser
def test_every_control_has_a_name(server: Server, browser: Browser) -> None:
    browser.open(server.url + "/")
    unnamed = browser.run(
        """return [...document.querySelectorAll('button, input, textarea, dialog')].filter(e =>
             !(e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') ||
               (e.labels && e.labels.length))).map(e => e.id)"""
    )
    assert unnamed == []
