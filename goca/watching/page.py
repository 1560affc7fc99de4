"""The app's second tab: draw a picture from words, and see where each word's attention was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from goca.watching.seen import Seen
from goca.watching.show import strip

Drawn = tuple[Image.Image, Seen]
_SHOWN_AS: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["fullscreen", "download"]}
_SHOWN = 448  # px to which small pictures are enlarged


def drawing_page(
    gr: Any, draw: Callable[[str, str, int, int], Drawn], models: Sequence[str], guarded: Callable[..., Any]
) -> Any:
    """The tab as gradio Blocks.

    Args:
        gr: gradio, which is optional.
        draw: prompt, model, steps and seed -> picture, and what was seen.
        models: names to choose from.
        guarded: makes errors that the user can fix messages on the page.
    """
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown("Draw a picture from words, and see where attention to each word was while it was drawn.")
        with gr.Row():
            prompt = gr.Textbox(label="prompt", placeholder="star, circle, grass", elem_id="draw-prompt", scale=5)
            model = gr.Dropdown(list(models), value=models[0], label="model", scale=2, min_width=160)
            steps = gr.Slider(2, 50, value=12, step=1, label="steps", scale=2, min_width=140)
            seed = gr.Number(0, label="seed", precision=0, minimum=0, scale=1, min_width=90)
            run = gr.Button("Draw", variant="primary", elem_id="draw-run", scale=1, min_width=100)
        drawn = gr.State(None)
        with gr.Row():
            picture = gr.Image(label="picture", height=380, elem_id="drawn", **_SHOWN_AS)
            overlay = gr.Image(label="attention to the word", height=380, elem_id="drawn-word", **_SHOWN_AS)
        words = gr.Radio([], label="word", elem_id="drawn-words")
        gr.Markdown("Attention to every word over the steps, from noise (t = 1000) to the picture; each word on its own scale:")
        over_steps = gr.Image(show_label=False, elem_id="drawn-steps", **_SHOWN_AS)  # a label would lie over the first titles

        def show(prompt: str, model: str, steps: int, seed: int) -> tuple[Any, ...]:
            found = draw(prompt, model, int(steps), int(seed))
            names = list(found[1].words)
            chosen = gr.Radio(choices=names, value=names[0])
            return found, _large(found[0]), chosen, _overlay(found, names[0]), strip(found[1].only)

        outputs = [drawn, picture, words, overlay, over_steps]
        for start in (run.click, prompt.submit):
            start(guarded(show), [prompt, model, steps, seed], outputs)
        words.input(guarded(_overlay), [drawn, words], [overlay])
    return page


def _overlay(drawn: Drawn | None, word: str | None) -> Image.Image | None:
    if drawn is None or not word:
        return None
    image, seen = drawn
    return seen.words[word].overlay(_large(image))


def _large(image: Image.Image) -> Image.Image:
    factor = max(1, _SHOWN // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
