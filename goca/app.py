"""`python -m goca.app`: a page to upload a picture, type words and see segmentation, maps and scores (extra `app`)."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.app", "app")

import functools
import html
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from goca import config
from goca.backbones.base import Backbone
from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ConfigError, GocaError, missing
from goca.figures import plots
from goca.figures.attention_view import AttentionView
from goca.method import Method
from goca.observe import observe, read_image
from goca.segmentor import Segmentor
from goca.watching.page import drawing_page
from goca.watching.seen import Seen
from goca.watching.show import draw

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
try:
    import gradio as gr
except ImportError:  # `launch` says what to install
    gr = None  # type: ignore[assignment]

_SHOWN_SIDE = 448  # px to which small pictures are enlarged, by a whole factor
_STAGE = 380  # px: height of picture and results, so that all of them are in view at once
_TOKENS_SHOWN = 8
_EXAMPLES = 6
_STYLE = """
.gradio-container { max-width: 1360px !important; padding: 12px 20px !important }
#title h1 { font-size: 1.3rem; margin: 0 } #title p { margin: 0 }
#ask { align-items: end } #run { height: 100%; min-height: 44px }
.legend { line-height: 1.7 } .legend span { margin-right: 14px; white-space: nowrap }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 5px; vertical-align: -1px }
.legend i.none { border: 1px solid #888 }
#overlay-A img, #overlay-B img, #picture img, #differs img { object-fit: contain; image-rendering: pixelated }
@media (max-width: 640px) { .gradio-container { padding: 8px !important }
  #ask .form { flex-wrap: wrap } #both { min-width: 100% }
  #picture, #overlay-A, #overlay-B { height: 250px !important } }
"""


@dataclass(frozen=True)
class Setting:
    """One choice of backbone and methods, by the names of their configuration files."""

    model: str
    aggregation: str
    calibration: str
    refinement: str
    background: float | None  # None: every pixel belongs to a word


class Studio:
    """Loads each backbone once and segments with any setting; one picture at a time.

    Args:
        overrides: settings for every model, as on the command line.
    """

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        self._overrides = list(overrides)
        self._backbones: dict[str, Backbone] = {}
        self._lock = threading.Lock()

    def view(self, image: str | Path | np.ndarray, prompt: str, setting: Setting) -> AttentionView:
        """What the setting sees; raises GocaError with what to change."""
        read_image(image)  # a picture that cannot be read should not wait for the model
        with self._lock:
            return observe(self._segmentor(setting), image, prompt, background=setting.background)

    def draw(self, prompt: str, model: str, steps: int, seed: int) -> tuple[Image.Image, Seen]:
        """A picture of the prompt, and what was seen while it was drawn; raises GocaError with what to change."""
        if not prompt.strip():
            raise ConfigError("there is no prompt yet: write what to draw")
        with self._lock:
            return draw(self._segmentor(Setting(model, "vanilla", "goca", "none", None)), prompt, steps, seed)

    def _segmentor(self, setting: Setting) -> Segmentor:
        groups = [f"{name}={getattr(setting, name)}" for name in ("model", "aggregation", "calibration", "refinement")]
        cfg = config.compose([*groups, *self._overrides], "observe")
        if setting.model not in self._backbones:
            self._backbones = {}  # one at a time: two large models rarely fit
            self._backbones[setting.model] = config.build(cfg, "model").load()
        return Segmentor(self._backbones[setting.model], Method.from_config(cfg), cfg.seed, **cfg.attention)


def shown(view: AttentionView) -> tuple[Image.Image, int]:
    """The overlay, small pictures enlarged, and the factor by which."""
    picture, labels = (plots.enlarged(array, _SHOWN_SIDE) for array in (view.image, _labels(view)))
    return Image.fromarray(plots.overlay(picture, labels, view.classes)), picture.shape[0] // view.image.shape[0]


def differing(one: AttentionView, other: AttentionView) -> tuple[Image.Image, str]:
    """Where two settings give a pixel another word, in white, and how much of the picture that is."""
    names = [np.array(view.classes.names)[_labels(view)] for view in (one, other)]
    differs = names[0] != names[1]
    picture = Image.fromarray(plots.enlarged(255 * differs.astype(np.uint8), _SHOWN_SIDE))
    return picture, f"<b>A and B differ at {100 * differs.mean():.1f} % of the pixels</b>, white in the picture of differences."


def _labels(view: AttentionView) -> np.ndarray:
    return view.prediction.labels[0].cpu().numpy()


def legend(view: AttentionView) -> str:
    """The words in their colours, and warnings, as HTML; all text is escaped."""
    labels = _labels(view)
    chips = []
    for class_id in sorted(set(np.unique(labels).tolist()) | set(view.prediction.maps.ids)):
        share = 100 * float((labels == class_id).mean())
        colour = "background:rgb({},{},{})".format(*view.classes.colours[class_id]) if class_id else ""
        mark = f'<i style="{colour}"></i>' if class_id else '<i class="none"></i>'
        chips.append(f"<span>{mark}{html.escape(view.classes.names[class_id])} {share:.0f} %</span>")
    warnings = dict.fromkeys((*view.prompt.warnings, *view.prediction.warnings))
    notes = "".join(f"<div>Note: {html.escape(warning)}</div>" for warning in warnings)
    return f'<div class="legend">{"".join(chips)}</div>{notes}'


def build(studio: Studio, models: Sequence[str], examples: Sequence[tuple[str, str]]) -> Any:
    """The page as gradio Blocks: what is asked, the picture beside what each setting sees, then details and settings.

    Args:
        studio: does the work.
        models: names of `conf/model` to choose from.
        examples: (picture, words) to begin with.
    """
    with gr.Blocks(analytics_enabled=False, title="GoCA") as page:
        gr.Markdown("# GoCA\nSegment a picture by words, from the attention of a text-to-image model.", elem_id="title")
        with gr.Row(elem_id="ask"):
            prompt = gr.Textbox(label="words, a caption or a sentence", placeholder="cat, grass", elem_id="prompt", scale=6)
            both = gr.Checkbox(False, label="compare with a second setting", elem_id="both", scale=2, min_width=180)
            run = gr.Button("Segment", variant="primary", elem_id="run", scale=1, min_width=120)
        with gr.Row():
            with gr.Column(min_width=280):
                image = _upload(label="picture", sources=["upload", "clipboard"], height=_STAGE, elem_id="picture")
            with gr.Column(min_width=280):
                result_a = _result("A")
            with gr.Column(min_width=280, visible=False) as second:
                result_b = _result("B")
        difference = gr.HTML(elem_id="difference")
        gr.Examples([list(example) for example in examples], [image, prompt], label="bundled scenes", examples_per_page=3)
        with gr.Row():
            with gr.Column(min_width=280):
                details_a = _details("A", result_a)
                controls_a = _controls("A", models, "goca", "goca")
            with gr.Column(min_width=280, visible=False) as second_details:
                details_b = _details("B", result_b)
                differs = _picture(label="where A and B differ", height=256, elem_id="differs")
                controls_b = _controls("B", models, "vanilla", "vanilla")

        def segment(image: str | None, prompt: str, *choices: Any) -> tuple[Any, ...]:
            if image is None:
                raise ConfigError("there is no picture yet: upload one, or pick one below")
            model, aggregation, calibration, refinement, with_background, tau = choices
            view = studio.view(
                image, prompt, Setting(model, aggregation, calibration, refinement, tau if with_background else None)
            )
            words = list(view.words)
            return view, shown(view)[0], legend(view), gr.Radio(choices=words, value=words[0]), _word_map(view, words[0]), None

        def segment_b(chosen: bool, view_a: AttentionView, *arguments: Any) -> tuple[Any, ...]:
            if not chosen:
                return None, None, "", gr.Radio(choices=[]), None, None, None, ""
            found = segment(*arguments)
            return *found, *differing(view_a, found[0])

        both.change(lambda chosen: (gr.Column(visible=chosen),) * 2, [both], [second, second_details])
        outputs_a, outputs_b = [*result_a, *details_a], [*result_b, *details_b, differs, difference]
        for start in (run.click, prompt.submit):
            first = start(_guarded(segment), [image, prompt, *controls_a], outputs_a)
            first.success(_guarded(segment_b), [both, result_a[0], image, prompt, *controls_b], outputs_b)
    return page


def _upload(**options: Any) -> Any:
    """A field for pictures that hands on the file as it came: it is read, and refused, by the same rules as everywhere else."""
    field = gr.Image(type="filepath", **options)
    field.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return field


def _picture(**options: Any) -> Any:
    """A picture that is shown and can be enlarged and kept."""
    return gr.Image(interactive=False, format="png", buttons=["fullscreen", "download"], **options)


def _result(name: str) -> list[Any]:
    """What is seen at once of one setting: the view that everything is made of, the overlay and its legend."""
    view = gr.State(None)
    overlay = _picture(label=f"{name}: click a pixel", height=_STAGE, elem_id=f"overlay-{name}")
    return [view, overlay, gr.HTML(elem_id=f"legend-{name}")]


def _details(name: str, result: Sequence[Any]) -> list[Any]:
    """The map of a word, and the scores of the pixel that was clicked."""
    view, overlay, _ = result
    scores = gr.Label(
        label="attention at the pixel", num_top_classes=_TOKENS_SHOWN, show_heading=False, elem_id=f"scores-{name}"
    )
    words = gr.Radio([], label="map of a word", elem_id=f"words-{name}")
    heat = _picture(label="attention of the word", height=256, elem_id=f"map-{name}")
    overlay.select(_guarded(_scores), [view], [scores])
    words.input(_guarded(_word_map), [view, words], [heat])
    return [words, heat, scores]


def _controls(name: str, models: Sequence[str], aggregation: str, calibration: str) -> list[Any]:
    """What can be chosen for one setting."""
    with gr.Accordion(f"Setting {name}", open=False, elem_id=f"setting-{name}"):
        controls: list[Any] = [gr.Dropdown(list(models), value=models[0], label="backbone", elem_id=f"model-{name}")]
        for group, value in (("aggregation", aggregation), ("calibration", calibration), ("refinement", "affinity")):
            controls.append(gr.Dropdown(config.options(group), value=value, label=group, elem_id=f"{group}-{name}"))
        controls.append(gr.Checkbox(False, label="background competes", elem_id=f"background-{name}"))
        controls.append(gr.Slider(0, 1, value=0.7, step=0.05, label="background threshold (one word alone: 0.5)"))
    return controls


def _word_map(view: AttentionView | None, word: str | None) -> Image.Image | None:
    if view is None or not word:
        return None
    values = view.map_of(word)
    return plots.heat(values, float(values.max()), 256)


def _scores(view: AttentionView | None, event: gr.SelectData) -> dict[str, float] | None:
    if view is None:
        return None
    x, y = (int(place) // shown(view)[1] for place in event.index)
    return dict(list(view.scores(x, y).items())[:_TOKENS_SHOWN])


def _guarded(work: Callable[..., Any]) -> Callable[..., Any]:
    """Show errors that the user can fix as a message on the page."""

    @functools.wraps(work)  # gradio reads the signature to know which events it wants
    def call(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except GocaError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    return call


def launch(cfg: DictConfig, wait: bool = True) -> Any:
    """Serve the app as configured; returns the page.

    Raises:
        ConfigError: gradio is missing, the port is taken, or a model has no configuration.
    """
    if gr is None:
        raise ConfigError(missing("gradio", "app", "the app"))
    known = config.options("model")
    for model in cfg.models:
        if model not in known:
            raise ConfigError(f"models: there is no model '{model}'; choices are {', '.join(known)}")
    _check_port(cfg.host, cfg.port)
    studio, models = Studio(cfg.overrides), list(cfg.models)
    looking = build(studio, models, _scenes(Path(tempfile.mkdtemp(prefix="goca-app-"))))
    drawing = drawing_page(gr, studio.draw, models, _guarded)
    page = gr.TabbedInterface([looking, drawing], ["Look at a picture", "Draw one"], title="GoCA")
    # System fonts: the default theme asks Google for its own.
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",))
    page.queue(default_concurrency_limit=1).launch(
        server_name=cfg.host,
        server_port=cfg.port,
        share=False,  # not even where GRADIO_SHARE, or gradio's guess about the machine, would open a tunnel
        theme=theme,
        css=_STYLE,
        max_file_size="50mb",
        footer_links=[],
        quiet=not wait,
        prevent_thread_lock=not wait,
    )
    return page


def _scenes(folder: Path) -> list[tuple[str, str]]:
    """Bundled scenes as files with their words."""
    scenes = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"))
    examples = []
    for index in range(_EXAMPLES):
        sample = scenes[index]
        path = folder / f"{sample.image_id}.png"
        Image.fromarray(sample.image).save(path)
        examples.append((str(path), sample.caption or ""))
    return examples


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {host} cannot be used ({error.strerror}); set port to another one") from error


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "app"):
        launch(cfg)
