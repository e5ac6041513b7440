"""The playground in a real browser: writing, branching, states, neurons, keys, links, and manners."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from serving import serving, write_models
from test_generation import LETTERS, byte_model, make_model

from textlstm.model import Model

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PICTURES = os.environ.get("TEXTLSTM_PICTURES")  # a folder for screenshots


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), letters=make_model(), bytes=byte_model())


@pytest.fixture(scope="module")
def site(models):
    with serving(models) as site:
        yield site


@pytest.fixture
def page(chromium, site):
    """The playground, at once instead of at a typewriter's pace; any complaint of the browser fails the test."""
    context = chromium.new_context(reduced_motion="reduce")
    page = context.new_page()
    complaints: list[str] = []
    hosts: set[str] = set()
    # That an answer is 400 the browser notes by itself.
    page.on("console", lambda message: "status of 400" in message.text or complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    open_page(page, site.url)
    yield page
    assert not complaints and hosts == {f"127.0.0.1:{site.port}"}
    context.close()


def open_page(page, url):
    page.goto(url)
    page.locator("#model option").first.wait_for(state="attached")


def write(page, prompt=None, seed=5):
    if prompt is not None:
        page.locator("#prompt").fill(prompt)
        page.locator("#seed").fill(str(seed))
        assert page.locator("#keep-seed").is_checked(), "who types a seed means it"
    page.keyboard.press("Control+Enter")
    return done(page)


def done(page):
    page.locator("#status", has_text=re.compile("tokens?, made at|Stopped")).wait_for()
    page.locator("#write").wait_for()
    return written(page)


def written(page):
    return "".join(page.locator(".token").all_text_contents())


def picture(page, name):
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def letters(models):
    return Model.load(models["letters"])


def test_it_writes_what_the_model_writes(page, models):
    text = write(page, "hallo")
    assert text == letters(models).generate("hallo", seed=5, temperature=0.8, max_tokens=160, stop_at_end=True)
    assert page.locator("#prompt-shown").text_content() == "hallo"
    more = write(page)  # on from there
    assert more.startswith(text) and len(more) > len(text)
    expected = letters(models).generate("hallo" + text, seed=5, temperature=0.8, max_tokens=160, stop_at_end=True)
    assert more == text + expected
    picture(page, "writing")


def test_settings_have_the_names_of_the_fields(page, site):
    fields = site.get("/openapi.json")["components"]["schemas"]["CompletionBody"]["properties"]
    names = page.locator("#sliders input, #more-sliders input").evaluate_all("all => all.map(one => one.id)")
    assert set(names) - {"typewriter"} <= set(fields) and "temperature" in names
    page.locator("#temperature").fill("0")
    page.locator("#max_tokens").fill("12")
    greedy = write(page, "hallo")
    assert greedy == letters_greedy(12)


def test_a_pattern(page, models):
    page.locator("details.more summary").click()
    page.locator("#guided_regex").fill("[a-e]+u[f-h]")
    expected = letters(models).generate("hallo", seed=5, regex="[a-e]+u[f-h]", max_tokens=160, stop_at_end=True)
    assert write(page, "hallo") == expected
    page.locator("#guided_regex").fill("[a-")
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="'[a-' is not a regular expression").wait_for()
    assert written(page) == expected


def letters_greedy(number):
    return make_model().generate("hallo", temperature=0, max_tokens=number)


def test_again_undo_and_branches(page):
    first = write(page, "hallo")
    page.keyboard.press("r")
    second = done(page)
    assert second != first
    assert page.locator("#tree button").count() == 3
    page.keyboard.press("u")
    assert written(page) == ""
    page.locator("#tree button").nth(1).click()
    assert written(page) == first
    page.locator("#clear").click()
    assert written(page) == "" and page.locator("#prompt").input_value() == ""


def test_alternatives_with_their_probabilities(page, models):
    text = write(page, "hallo")
    page.locator(".token").nth(3).hover()
    page.locator("#peek").wait_for()
    model = letters(models)
    ids = np.array([[22, *model.tokenizer.encode("hallo" + text[:3])]])
    logits, _ = model.engine.prefill(ids, model.engine.zero_state(1))
    probs = np.exp(logits[0]) / np.exp(logits[0]).sum()
    best = list(np.argsort(-probs)[:8])
    names = page.locator("#peek code").all_text_contents()
    shares = page.locator("#peek button span").all_text_contents()
    for id, name, share in zip(best, names, shares, strict=False):
        assert name == (LETTERS + "#")[id].replace("#", "<|endoftext|>")
        assert float(share.split()[0]) == pytest.approx(100 * probs[id], abs=0.06)
    choice = next(i for i, name in enumerate(names) if name != text[3] and len(name) == 1)
    page.locator("#peek button").nth(choice).click()
    forked = done(page)
    assert forked.startswith(text[:3] + names[choice]) and forked != text
    assert page.locator(".token.picked").count() == 1
    assert page.locator("#tree button").count() == 3
    picture(page, "branches")


def test_by_keys_alone(page):
    page.keyboard.press("Tab")  # wherever the focus is, keys lead to the text and its alternatives
    page.locator("#prompt").focus()
    page.keyboard.type("hallo")
    page.evaluate("document.querySelector('#seed').value = 5")  # another seed may end after a letter
    page.evaluate("document.querySelector('#keep-seed').checked = true")
    page.keyboard.press("Control+Enter")
    text = done(page)
    assert len(text) > 2
    page.locator('.token[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token:focus").text_content() == text[2]
    page.keyboard.press("Enter")
    page.locator("#peek button:focus").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert page.locator("#peek").is_hidden() and page.locator(".token:focus").count() == 1
    page.keyboard.press("c")
    assert page.locator("#colour").input_value() == "none"
    page.keyboard.press("?")
    page.locator("#keys[open]").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    assert page.locator("#prompt:focus").input_value() == "hallo"


def test_stop(page):
    page.emulate_media(reduced_motion="no-preference")
    page.locator("#max_tokens").fill("1000")
    page.locator("details.more summary").click()
    page.locator("#ignore_eos").check()
    page.locator("#typewriter").fill("40")
    page.keyboard.press("Control+Enter")
    page.locator(".token").nth(2).wait_for()
    page.keyboard.press("Escape")
    text = done(page)
    assert 2 < len(text) < 900 and "Stopped" in page.locator("#status").text_content()


def test_a_link_writes_the_same_again(page, chromium, site):
    text = write(page, "hallo", seed=77)
    page.locator("#share").click()
    page.locator("#status", has_text=re.compile("link|address")).wait_for()
    other = chromium.new_context(reduced_motion="reduce").new_page()
    other.goto(page.url)
    assert done(other) == text
    other.context.close()


def test_shelf_of_states(page, site):
    page.locator("summary", has_text="State shelf").click()
    write(page, "hallo")
    for name in ("one", "two"):
        page.locator("#save-name").fill(name)
        page.keyboard.press("Enter")
        page.locator("#states li", has_text=name).wait_for()
    saved = written(page)
    assert site.text("", state="one", max_tokens=9) == site.text("hallo" + saved, max_tokens=9)
    page.locator("#mix-form button").click()
    page.locator("#begun", has_text="50 % “one” and 50 % “two”").wait_for()
    assert len(write(page)) > 0
    page.get_by_label("Begin from one").click()
    page.locator("#begun", has_text="the state “one”").wait_for()
    for name in ("one", "two"):
        page.get_by_label(f"Delete {name}").click()
        page.locator("#states li", has_text=name).wait_for(state="detached")


def test_neurons_over_the_text(page, models):
    write(page, "hallo")
    page.locator("#xray-neurons").fill("3, 5")
    page.locator("#xray-form button").click()
    page.locator("canvas").nth(1).wait_for()
    assert page.locator(".neuron button").all_text_contents() == ["1·3", "1·5"]
    page.locator(".neuron button").first.click()
    tones = page.locator(".token").evaluate_all("all => all.map(one => one.style.getPropertyValue('--tone'))")
    assert set(tones) == {"var(--hot)", "var(--cold)"}
    picture(page, "neurons")


def test_text_is_never_markup(page, site):
    prompt = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page.locator("#model").select_option("bytes")
    write(page, prompt)
    assert page.locator("#prompt-shown").text_content() == prompt
    assert page.locator(".paper img, .paper script").count() == 0


def test_model_card_and_themes(page):
    page.locator("#show-card").click()
    assert "letters" in page.locator("#card-rows").text_content()
    page.keyboard.press("Escape")
    before = page.locator("html").get_attribute("data-theme")
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") != before
    picture(page, "dark")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_and_labels(chromium, site, theme):
    """Text has a contrast of 4.5 to what is behind it (WCAG 2.2, AA), and every control has a name."""
    context = chromium.new_context(color_scheme=theme)
    page = context.new_page()
    open_page(page, site.url)
    style = "one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor]"
    desk = page.locator("html").evaluate(style)[1]
    for selector in (".quiet", "h2", "#write", "#again", "#prompt", ".field code", "#show-card"):
        colour, behind = page.locator(selector).first.evaluate(style)
        behind = desk if behind == "rgba(0, 0, 0, 0)" else behind
        if selector == "#prompt":
            behind = page.locator(".paper").evaluate(style)[1]
        assert contrast(colour, behind) >= 4.5, selector
    nameless = page.locator("button, input, select, textarea").evaluate_all(
        "all => all.filter(one => !(one.textContent.trim() || one.labels?.length || one.ariaLabel)).map(one => one.id)"
    )
    assert set(nameless) <= {"prompt-shown"}  # empty while it is hidden
    context.close()


def contrast(one, other):
    def luminance(colour):
        parts = [float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_on_a_phone(chromium, site):
    context = chromium.new_context(viewport={"width": 360, "height": 740}, reduced_motion="reduce", has_touch=True)
    page = context.new_page()
    open_page(page, site.url)
    page.locator("#prompt").fill("hallo")
    page.locator("#write").tap()
    done(page)
    assert page.locator("html").evaluate("one => one.scrollWidth <= one.clientWidth"), "nothing sticks out"
    page.locator(".token").first.tap()
    page.locator("#peek").wait_for()
    page.wait_for_timeout(500)  # after the finger was lifted
    assert page.locator("#peek").is_visible()
    box = page.locator("#peek").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    picture(page, "phone")
    context.close()


def test_a_key_is_asked_for(chromium, models):
    with serving(models, api_keys=("secret",)) as site:
        page = chromium.new_page()
        page.goto(site.url)
        page.locator("#login[open]").wait_for()
        page.locator("#key").fill("secret")
        page.keyboard.press("Enter")
        page.locator("#model option").first.wait_for(state="attached")
        page.close()
