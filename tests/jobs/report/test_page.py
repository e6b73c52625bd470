"""The page in a browser: what it draws, computes, escapes, and how it is reached."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser
from safetensors.torch import load_file
from torch import Tensor

from exporters.layerfile import save_layer
from jobs.report import attention
from tests.helpers import ROOT, random_layer, recommit, small_export, succeed, write_corpus
from tests.jobs.report.browser import Opened, chromium, needs_browser, opened

LONG, SHORT = 96, 40  # tokens of a window
PLACES, FEW = 64, 16  # of those that a map shows, as it is and to be quick
TEXT = "One fish, two fish, red fish, blue fish.\n" * 40
HOSTILE = (
    '</script><script>document.title="run"</script><img src=x onerror=\'document.title="run"\'>'
    "<!-- ]]> {{ 7*7 }} \" ' & \u2028\u2029 \u202etxt\u202c \x07\x1b[31m\n"
)
JOB = ("--device", "cpu", "--d-model", 32, "--heads", 4,
       "--vocab-size", "corpus", "--method", "tables")  # fmt: skip

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(
        tmp_path_factory.mktemp("corpus"), a=TEXT, b="小沈阳江西演唱会邀请沈春，\n" * 30
    )


def report(export: Path, *options: object) -> Path:
    succeed("report", export, "--quiet", *options)
    return export.with_name(f"{export.name}.html")


@pytest.fixture(scope="module")
def whole(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """The page of an export with every tensor."""
    page = report(small_export(tmp_path_factory.mktemp("whole")))
    with opened(browser, page) as shown:
        yield shown


def maps(q: Tensor, k: Tensor, real: int, causal: bool) -> Tensor:
    """softmax(q kᵀ / sqrt(Dh)) of a window in float64, [H, real, real]."""
    q, k = q[:, :real].double(), k[:, :real].double()
    scores = q @ k.repeat_interleave(len(q) // len(k), 0).transpose(1, 2) / q.shape[2] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(real, real).triu(1).bool(), -torch.inf)
    weights: Tensor = scores.softmax(-1)
    return weights


@pytest.mark.parametrize(
    ("length", "options", "compact"),
    [
        pytest.param(LONG, (), False, id="full"),
        pytest.param(SHORT, ("--kv-heads", 2, "--layout", "bthd", "--dtype", "bfloat16"), False,
                     id="grouped-bthd-bfloat16"),
        pytest.param(SHORT, ("--dtype", "float16", "--positions", "rope", "--boundaries", "split",
                             "--tail", "pad"), True, id="compact-rope-float16-padded"),
    ],
)  # fmt: skip
def test_attention_is_that_of_the_shards(
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    options: tuple[object, ...],
    compact: bool,
    corpus: Path,
    browser: Browser,
    tmp_path: Path,
) -> None:
    export = tmp_path / "export"
    job = (*JOB, "--context-length", length, *options)
    succeed("run", corpus, "--out", export, *job)
    shard = load_file(next((export / "shards").iterdir()))
    if "bthd" in options:
        shard |= {name: shard[name].transpose(1, 2) for name in "qk"}
    last = len(shard["q"]) - 1
    most = PLACES if length == LONG else FEW
    monkeypatch.setattr(attention, "PLACES", (most,))
    if compact:
        export = tmp_path / "compact"
        succeed("run", corpus, "--out", export, *job, "--artifact", "compact")
    page = report(export, "--window", 0, "--window", last)
    with opened(browser, page) as shown:
        for window, head, causal in (
            (0, 0, True),
            (0, 3, False),
            (last, 1, False),
            (last, 2, True),
        ):
            shown.pick(window=window, head=head)
            shown.causal(causal)
            mask = (
                shard["mask"][window] if "mask" in shard else torch.ones(length, dtype=torch.bool)
            )
            real = int(mask.sum())
            expected = maps(shard["q"][window], shard["k"][window], real, causal)[head]
            places = min(real, most)
            found = torch.zeros(places, places, dtype=torch.float64)
            for query, row in enumerate(shown.matrix):
                found[query, : len(row)] = torch.tensor(row, dtype=torch.float64)
            torch.testing.assert_close(found, expected[:places, :places], rtol=0, atol=1e-5)
            said = shown.page.locator("#said").inner_text()
            if real > most and not causal:
                beyond = float(1 - expected[:places, :places].sum(1).mean())
                assert f"{100 * beyond:.1f}% of the weight lies beyond those shown" in said
        assert shown.complaints == []
    if "pad" in options:
        assert real < length


def test_everything_is_drawn_without_a_word_or_a_request(whole: Opened) -> None:
    charts = whole.page.locator(".chart")
    assert charts.count() == 10
    for i in range(charts.count()):
        chart = charts.nth(i)
        name = chart.get_attribute("data-chart") or "map"
        assert chart.locator("svg .role-mark path").count() > 0, name
        described = chart.locator("[role=graphics-document]").get_attribute("aria-label") or ""
        assert len(described) > 20, name
    assert whole.complaints == []
    assert whole.requests == [whole.page.url]


def test_pickers_change_the_map_and_are_reached_by_keyboard(whole: Opened) -> None:
    page = whole.page
    seen = [whole.matrix]
    page.locator("#attention-title").click()
    for expected, key in (("window", "ArrowDown"), ("head", "ArrowDown"), ("causal", "Space")):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == expected
        page.keyboard.press(key)
        seen.append(whole.matrix)
    assert all(one != other for one, other in pairwise(seen))
    page.locator("#map [aria-label*='head 1, both ways']").wait_for()
    assert "head 1, both ways" in page.locator("#said").inner_text()


def test_what_a_place_looks_at_is_a_table_too(whole: Opened) -> None:
    whole.page.get_by_label("Place", exact=True).select_option(index=5)
    row = whole.matrix[5]
    shown = whole.page.locator("#looks tr").first.inner_text().split()
    assert int(shown[0]) == row.index(max(row))
    assert shown[-1] == f"{100 * max(row):.1f}%"


def test_ids_of_tokens_are_shown_without_a_mouse(whole: Opened) -> None:
    token = whole.page.locator(".t", has_text="fish").first
    assert token.get_attribute("title") == "7795"  # of " fish" in cl100k_base
    content = "e => getComputedStyle(e, '::after').content"
    assert token.evaluate(content) == "none"
    whole.page.get_by_label("Show ids").focus()
    whole.page.keyboard.press("Space")
    assert token.evaluate(content) != "none"
    assert token.get_attribute("data-ids") == "7795"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_narrow_screen_does_not_scroll_sideways(scheme: Any, whole: Opened) -> None:
    whole.page.set_viewport_size({"width": 390, "height": 844})
    whole.page.emulate_media(color_scheme=scheme)
    whole.page.wait_for_selector(f"html[data-drawn={scheme}]")
    assert whole.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert whole.complaints == []


def test_colours_follow_the_scheme_while_the_page_is_open(whole: Opened) -> None:
    fill = "document.querySelector('[data-chart=lengths] .mark-rect path').getAttribute('fill')"
    whole.page.emulate_media(color_scheme="light")
    whole.page.wait_for_selector("html[data-drawn=light]")
    before = whole.page.evaluate(fill)
    whole.page.emulate_media(color_scheme="dark")
    whole.page.wait_for_selector("html[data-drawn=dark]")
    assert whole.page.evaluate(fill) != before
    assert whole.complaints == []


def test_hostile_strings_are_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / '<img src=x onerror="document.title=1">.txt').write_text(HOSTILE * 30, "utf-8")
    export = tmp_path / "<b>&amp;'\""
    succeed("run", corpus, "--out", export, *JOB, "--context-length", LONG)

    def spoil(manifest: dict[str, Any]) -> None:
        manifest["compute"]["reason"] = HOSTILE
        manifest["job"]["</script><script>document.title=1</script>"] = HOSTILE
        manifest["corpus"]["listed"] = [dict.fromkeys(("file", "place", "reason"), HOSTILE)]

    recommit(export, spoil)
    run = json.loads((export / "run.json").read_text())
    run["stages"][1]["name"] = run["machine"] = HOSTILE
    (export / "run.json").write_text(json.dumps(run))
    page = report(export)
    with opened(browser, page) as shown:
        assert shown.page.title() == "<b>&amp;'\" – qkvmill report"
        text = shown.page.locator(".text").first.inner_text()
        assert '</script><script>document.title="run"</script><img src=x' in text
        assert "<!-- ]]> {{ 7*7 }}" in text
        assert "\\u202etxt\\u202c \\x07\\x1b[31m" in text
        assert shown.page.locator("img, iframe, object").count() == 0
        assert shown.complaints == []
        assert shown.requests == [page.as_uri()]


def test_words_stand_out_from_what_is_behind_them() -> None:
    style = (ROOT / "jobs" / "report" / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w+): #(\w{6});", scheme))
        for words in ("ink", "soft", "accent"):
            behind = ("page", "surface") if words == "accent" else (
                "page", "surface", "t0", "t1", "t2", "t3")  # fmt: skip
            for name in behind:
                low, high = sorted(map(luminance, (colours[words], colours[name])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (words, name)


def test_a_corpus_of_one_token_is_drawn(browser: Browser, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", a=" the" * 50)
    export = tmp_path / "export"
    succeed("run", corpus, "--out", export, *JOB, "--context-length", 4, "--positions", "none")
    with opened(browser, report(export)) as shown:
        assert shown.complaints == []


def test_tokens_alone_say_what_is_not_there(corpus: Path, browser: Browser, tmp_path: Path) -> None:
    export = tmp_path / "export"
    succeed("run", corpus, "--out", export, "--export", "tokens", "--context-length", 32)
    with opened(browser, report(export)) as shown:
        for section in ("#norms", "#attention"):
            assert "q and k were not exported" in shown.page.locator(section).inner_text()
        assert "no position table" in shown.page.locator("#positions").inner_text()
        assert shown.page.locator("#map").count() == 0
        assert shown.complaints == []


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (128, 8)])
def test_a_wide_layer_fits_the_page(
    heads: int, kv_heads: int, corpus: Path, browser: Browser, tmp_path: Path
) -> None:
    layer = random_layer(d=8, heads=heads, kv_heads=kv_heads, head_dim=128, context_length=64,
                         vocabulary_size=100_277)  # fmt: skip
    save_layer(tmp_path, "layer.safetensors", replace(layer, v_bias=None))
    export = tmp_path / "export"
    succeed("run", corpus, "--out", export, "--weights", tmp_path / "layer.safetensors",
            "--context-length", 64, "--batches", 1, "--dtype", "bfloat16")  # fmt: skip
    windows = [option for i in range(8) for option in ("--window", i)]
    page = report(export, *windows)
    assert page.stat().st_size < 5_000_000
    if heads == 128:
        with opened(browser, page) as shown:
            kept = shown.page.locator("#head option").count()
            assert f"{kept} of 128 query heads" in shown.page.inner_text("#attention")
            assert len(shown.matrix) >= 24
            assert shown.complaints == []
