"""The audit page in a real browser: all parts, no error, nothing from elsewhere, no overflow, anchors and keyboard."""

import pathlib
import shutil

import pytest

from keras_capsvit import report

sync_api = pytest.importorskip("playwright.sync_api")
ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "audit" / "digits.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.slow,
    pytest.mark.tensorflow,
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def look(browser):
    """Open a file; returns the page, what its console said, and what it asked for."""
    contexts = []

    def opened(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page, said, [url for url in asked if not url.startswith("data:")]

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole(look, width, scheme):
    page, said, asked = look(EXAMPLE, width, scheme)
    assert (said, asked) == ([], [EXAMPLE.as_uri()])
    for name in (*report.PARTS, *report.STEPS):
        assert page.locator(f'[id="{name}"]').is_visible(), name
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pictures = page.evaluate("[...document.images].map(each => [each.complete && each.naturalWidth > 0, each.alt])")
    assert len(pictures) > 100
    assert all(whole and alt for whole, alt in pictures)


def test_colours_follow_the_system(look):
    colours = [look(EXAMPLE, scheme=scheme)[0].evaluate("getComputedStyle(document.body).color") for scheme in SCHEMES]
    assert len(set(colours)) == 2


SCHEMES = ("light", "dark")


def test_every_diagram_names_its_axes(look):
    page, _, _ = look(EXAMPLE)
    sources = page.evaluate("[...document.querySelectorAll('.plot img')].map(each => atob(each.src.split(',')[1]))")
    assert len(sources) >= 9
    labels = ("predicted class", "confidence (", "AOPC", "insertion", "deletion", "infidelity", "radius of", "severity")
    for label in (*labels, "column of the grid"):
        assert any(label in source for source in sources), label
    assert all("<text" in source for source in sources)


@pytest.mark.parametrize("width", [1280, 390])
def test_anchors_and_keyboard_work(look, width):
    page, _, _ = look(EXAMPLE, width)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")
    for name in report.PARTS:
        page.locator(f'nav a[href="#{name}"]').click()
        page.wait_for_function(
            "name => { const top = document.getElementById(name).getBoundingClientRect().top;"
            " const end = document.documentElement; return (top > -5 && top < 160) ||"
            " end.scrollTop + innerHeight >= end.scrollHeight - 2; }",
            arg=name,
        )
        assert page.url.endswith(f"#{name}")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1
