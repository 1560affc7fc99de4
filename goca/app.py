"""`python -m goca.app`: a page to upload a picture, type words and see segmentation, maps and scores (extra `app`)."""

from __future__ import annotations

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

import hydra
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
from goca.paths import CONF
from goca.segmentor import Segmentor

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
try:
    import gradio as gr
except ImportError:  # `launch` says what to install
    gr = None  # type: ignore[assignment]

_SHOWN_SIDE = 448  # px to which small pictures are enlarged, by a whole factor
_TOKENS_SHOWN = 8
_EXAMPLES = 6
_STYLE = (
    ".legend span { margin-right: 14px; white-space: nowrap } .legend i { display: inline-block; width: 12px; height: 12px; "
)
_STYLE += "border-radius: 3px; margin-right: 5px; vertical-align: -1px } .gradio-container { max-width: 1280px !important }"


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

    def _segmentor(self, setting: Setting) -> Segmentor:
        groups = [f"{name}={getattr(setting, name)}" for name in ("model", "aggregation", "calibration", "refinement")]
        cfg = config.compose([*groups, *self._overrides], "observe")
        if setting.model not in self._backbones:
            self._backbones = {}  # one at a time: two large models rarely fit
            self._backbones[setting.model] = config.build(cfg, "model").load()
        return Segmentor(self._backbones[setting.model], Method.from_config(cfg), cfg.seed, cfg.attention.max_bytes)


def shown(view: AttentionView) -> tuple[Image.Image, int]:
    """The overlay, small pictures enlarged, and the factor by which."""
    factor = max(1, _SHOWN_SIDE // max(view.image.shape[:2]))
    labels = view.prediction.labels[0].cpu().numpy()
    picture = Image.fromarray(plots.overlay(view.image, labels, view.classes))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST), factor


def legend(view: AttentionView) -> str:
    """The words in their colours, and warnings, as HTML; all text is escaped."""
    labels = view.prediction.labels[0].cpu().numpy()
    chips = []
    for class_id in sorted(set(np.unique(labels).tolist()) | set(view.prediction.maps.ids)):
        share = 100 * float((labels == class_id).mean())
        colour = "transparent" if class_id == 0 else "rgb({},{},{})".format(*view.classes.colours[class_id])
        name = html.escape(view.classes.names[class_id])
        chips.append(f'<span><i style="background:{colour}"></i>{name} {share:.0f} %</span>')
    warnings = dict.fromkeys((*view.prompt.warnings, *view.prediction.warnings))
    notes = "".join(f"<div>Note: {html.escape(warning)}</div>" for warning in warnings)
    return f'<div class="legend">{"".join(chips)}</div>{notes}'


def build(studio: Studio, models: Sequence[str], examples: Sequence[tuple[str, str]]) -> Any:
    """The page as gradio Blocks.

    Args:
        studio: does the work.
        models: names of `conf/model` to choose from.
        examples: (picture, words) to begin with.
    """

    def guarded(work: Callable[..., Any]) -> Callable[..., Any]:
        """Show what a person can mend as a message."""

        @functools.wraps(work)  # gradio reads the signature to know which events it wants
        def call(*arguments: Any) -> Any:
            try:
                return work(*arguments)
            except GocaError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        return call

    def segment(image: str | None, prompt: str, *choices: Any) -> tuple[Any, ...]:
        if image is None:
            raise ConfigError("there is no picture yet: upload one, or pick one below")
        model, aggregation, calibration, refinement, with_background, tau = choices
        setting = Setting(model, aggregation, calibration, refinement, tau if with_background else None)
        view = studio.view(image, prompt, setting)
        words = list(view.words)
        return view, shown(view)[0], legend(view), gr.Radio(choices=words, value=words[0]), word_map(view, words[0]), None

    def word_map(view: AttentionView | None, word: str | None) -> Image.Image | None:
        if view is None or not word:
            return None
        values = view.map_of(word)
        return plots.heat(values, float(values.max()), 256)

    def pixel(view: AttentionView | None, event: gr.SelectData) -> dict[str, float] | None:
        if view is None:
            return None
        x, y = (int(place) // shown(view)[1] for place in event.index)
        return dict(list(view.scores(x, y).items())[:_TOKENS_SHOWN])

    def side(name: str, aggregation: str, calibration: str) -> tuple[list[Any], list[Any]]:
        """Controls and outputs of one setting."""
        with gr.Accordion(f"Setting {name}"):
            controls: list[Any] = [gr.Dropdown(list(models), value=models[0], label="backbone", elem_id=f"model-{name}")]
            for group, value in (("aggregation", aggregation), ("calibration", calibration), ("refinement", "affinity")):
                controls.append(gr.Dropdown(_choices(group), value=value, label=group, elem_id=f"{group}-{name}"))
            controls.append(gr.Checkbox(False, label="background competes", elem_id=f"background-{name}"))
            controls.append(gr.Slider(-0.4, 0.4, value=0.0, step=0.05, label="background threshold"))
        overlay = gr.Image(label=f"{name}: click a pixel", interactive=False, format="png", elem_id=f"overlay-{name}")
        key = gr.HTML(elem_id=f"legend-{name}")
        scores = gr.Label(
            label="attention at the pixel", num_top_classes=_TOKENS_SHOWN, show_heading=False, elem_id=f"scores-{name}"
        )
        words = gr.Radio([], label="map of a word", elem_id=f"words-{name}")
        heat = gr.Image(label="attention of the word", interactive=False, format="png", elem_id=f"map-{name}")
        view = gr.State(None)
        overlay.select(guarded(pixel), [view], [scores])
        words.input(guarded(word_map), [view, words], [heat])
        return controls, [view, overlay, key, words, heat, scores]

    with gr.Blocks(analytics_enabled=False, title="GoCA") as page:
        gr.Markdown("# GoCA\nSegment a picture by words, from the attention of a text-to-image model. Nothing is trained.")
        with gr.Row():
            image = gr.Image(type="filepath", label="picture", sources=["upload", "clipboard"], height=300, elem_id="picture")
            with gr.Column():
                prompt = gr.Textbox(label="words, a caption or a sentence", placeholder="cat, grass", elem_id="prompt")
                both = gr.Checkbox(False, label="compare with a second setting", elem_id="both")
                run = gr.Button("Segment", variant="primary", elem_id="run")
                gr.Examples([list(example) for example in examples], [image, prompt], label="bundled scenes")
        with gr.Row():
            with gr.Column():
                controls_a, outputs_a = side("A", "goca", "goca")
            with gr.Column(visible=False) as second:
                controls_b, outputs_b = side("B", "vanilla", "vanilla")

        def segment_b(chosen: bool, *arguments: Any) -> tuple[Any, ...]:
            return segment(*arguments) if chosen else (None, None, "", gr.Radio(choices=[]), None, None)

        both.change(lambda chosen: gr.Column(visible=chosen), [both], [second])
        for start in (run.click, prompt.submit):
            first = start(guarded(segment), [image, prompt, *controls_a], outputs_a)
            first.success(guarded(segment_b), [both, image, prompt, *controls_b], outputs_b)
    return page


def launch(cfg: DictConfig, wait: bool = True) -> Any:
    """Serve the app as configured; returns the page.

    Raises:
        ConfigError: gradio is missing, the port is taken, or a model has no configuration.
    """
    if gr is None:
        raise ConfigError(missing("gradio", "app", "the app"))
    known = _choices("model")
    for model in cfg.models:
        if model not in known:
            raise ConfigError(f"models: there is no model '{model}'; choices are {', '.join(known)}")
    _check_port(cfg.host, cfg.port)
    page = build(Studio(cfg.overrides), list(cfg.models), _scenes(Path(tempfile.mkdtemp(prefix="goca-app-"))))
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


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


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


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="app")
def main(cfg: DictConfig) -> None:
    with config.job(cfg, "app"):
        launch(cfg)


if __name__ == "__main__":
    config.command(main, "app")
