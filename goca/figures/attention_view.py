"""What one forward showed about one image and one prompt: maps, weights and scores to ask for, to look at and to store."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file
from torch import Tensor

from goca.attention.statistics import Observation
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.errors import ConfigError
from goca.figures import plots
from goca.figures.example import Example
from goca.prediction import Prediction
from goca.prompts import Prompt

NO_TEXT = "(no text)"
TOKEN_COLUMNS = ("position", "token", "part", "mean %", "most %")


@dataclass(frozen=True, eq=False, repr=False)
class AttentionView:
    """What one forward showed about one image and one prompt. Maps are float32 on the CPU."""

    image: np.ndarray  # (H, W, 3) uint8
    prompt: Prompt
    classes: ClassTable
    observation: Observation
    prediction: Prediction
    head_maps: dict[str, Tensor]  # layer -> (H, tokens of the content, h, w)

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"AttentionView({width} x {height} pixels, {self.prompt.text!r}, {len(self.observation.layer_maps)} layers)"

    # -------------------------------------------------------------------------------------------------------- questions
    @cached_property
    def token_maps(self) -> Tensor:
        """Share of each token at each pixel, before any calibration: (n, h, w)."""
        return self.observation.token_maps[0].float().cpu()

    @cached_property
    def normalised(self) -> Tensor:
        """Token maps stretched to 0 ... 1 one by one: (n, h, w)."""
        low, high = self.token_maps.amin((1, 2), keepdim=True), self.token_maps.amax((1, 2), keepdim=True)
        return torch.where(high > low, (self.token_maps - low) / (high - low), torch.zeros_like(self.token_maps))

    @cached_property
    def ranking(self) -> Tensor:
        """Rank of each pixel within its token's map, 0 (least) ... 1 (most): shows the order where values differ little."""
        flat = self.token_maps.flatten(1)
        ranks = flat.argsort(dim=1, stable=True).argsort(dim=1).float() / max(1, flat.shape[1] - 1)
        return ranks.unflatten(1, tuple(self.token_maps.shape[1:]))

    @property
    def words(self) -> dict[str, tuple[int, ...]]:
        """Word of the prompt -> positions of its tokens."""
        return {self.classes.names[i]: positions for i, positions in self.prompt.class_tokens.items()}

    @cached_property
    def example(self) -> Example:
        """The picture with its prediction and the maps behind it, as figures and loggers take it."""
        return Example.of(Sample("image", self.image, None, ()), self.prediction)

    def map_of(self, word: str) -> np.ndarray:
        """Mean map (h, w) of a word's tokens; raises ConfigError for a word the prompt does not name."""
        if word not in self.words:
            raise ConfigError(f"the prompt names no {word!r}; it names {', '.join(self.words)}")
        return self.token_maps[list(self.words[word])].mean(0).numpy()

    def scores(self, x: int, y: int) -> dict[str, float]:
        """Share of every word and every other token at a pixel of the image, largest first; they add up to 1.

        Raises:
            ConfigError: the pixel lies outside the image.
        """
        height, width = self.image.shape[:2]
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(f"pixel ({x}, {y}) lies outside the image of {width} x {height} pixels (x, y from 0)")
        rows, columns = self.token_maps.shape[-2:]
        shares = self.token_maps[:, y * rows // height, x * columns // width].tolist()
        members = {position: word for word, positions in self.words.items() for position in positions}
        padding = {position: f"({kind})" for kind, positions in self.prompt.special.items() for position in positions}
        totals: dict[str, float] = {}
        for position, share in enumerate(shares):
            name = members.get(position) or padding.get(position) or self._token_name(position)
            totals[name] = totals.get(name, 0.0) + share
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def _token_name(self, position: int) -> str:
        """Positions without a token are those of an encoder that the pipeline lacks."""
        tokens = self.prompt.tokens
        return f"{tokens[position]} [{position}]" if position < len(tokens) else NO_TEXT

    def token_table(self) -> Table:
        """Position, token, what it stands for, and how much attention it holds on average and at most."""
        table = Table(title=Text(self.prompt.text), title_justify="left")
        for name in TOKEN_COLUMNS:
            table.add_column(name, justify="left" if name in ("token", "part") else "right")
        for row in self.token_rows():
            table.add_row(str(row[0]), Text(row[1]), Text(row[2]), f"{row[3]:.2f}", f"{row[4]:.2f}")
        return table

    def token_rows(self) -> list[tuple[int, str, str, float, float]]:
        """Rows of the token table; padding is one row."""
        parts = {position: word for word, positions in self.words.items() for position in positions}
        parts |= {position: f"({kind})" for kind, positions in self.prompt.special.items() for position in positions}
        rows, padding = [], self.prompt.special.get("padding", ())
        for position, token in enumerate(self.prompt.tokens):
            if position in padding[1:]:
                continue
            members = list(padding) if position in padding[:1] else [position]
            values = 100 * self.token_maps[members].sum(0)
            name = f"{token} x {len(members)}" if len(members) > 1 else token
            rows.append((position, name, parts.get(position, ""), float(values.mean()), float(values.max())))
        if (empty := len(self.token_maps) - len(self.prompt.tokens)) > 0:
            values = 100 * self.token_maps[-empty:].sum(0)
            rows.append((len(self.prompt.tokens), f"x {empty}", NO_TEXT, float(values.mean()), float(values.max())))
        return rows

    # --------------------------------------------------------------------------------------------------------- pictures
    def picture(self) -> Image.Image:
        """The image with its classes laid over, and their names."""
        return plots.overlay_figure(self.image, self.prediction.labels[0].cpu().numpy(), self.classes)

    def figures(self, pixels: Sequence[tuple[int, int]] = ()) -> dict[str, Image.Image]:
        """Every picture by name; `pixels` are those whose scores are drawn."""
        content = list(self.prompt.content)
        names = [f"{i}: {self.prompt.tokens[i]}" for i in content]
        pictures = {"segmentation": self.picture()}
        kinds = {"raw": self.token_maps, "normalised": self.normalised, "ranking": self.ranking}
        for kind, maps in kinds.items():
            pictures[f"tokens_{kind}"] = plots.map_grid([(kind, maps[content].numpy())], names)
        layers = [
            (f"{layer}\nweight {self.prediction.layer_weights[layer]:.3f}", maps[0].float().cpu()[content].numpy())
            for layer, maps in self.observation.layer_maps.items()
        ]
        if layers:
            pictures["layers"] = plots.map_grid(layers, names)
        weights = self.prediction.layer_weights
        known = self.prediction.layer_weight_errors
        errors = [known[layer] for layer in weights] if known else None
        axis = "weight of the layer" + (", with its standard error" if errors else "")
        pictures["layer_weights"] = plots.bars(list(weights), list(weights.values()), errors, axis)
        for layer, maps in self.head_maps.items():
            heads = self.prediction.head_weights[layer]
            rows = [(f"head {h}\nweight {heads[h]:.3f}", maps[h].numpy()) for h in range(len(maps))]
            pictures[f"heads_{layer}"] = plots.map_grid(rows, names)
        pictures["stages"] = plots.stages(self.example, self.classes)
        for x, y in pixels:
            shares = dict(list(self.scores(x, y).items())[:20])
            pictures[f"pixel_{x}_{y}"] = plots.bars(list(shares), list(shares.values()), axis=f"share at x={x}, y={y}")
        return pictures

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, as `save=tensors` stores it."""
        found = {
            "token_maps": self.token_maps,
            "labels": self.prediction.labels.cpu(),
            "scores": self.prediction.maps.scores.cpu(),
        }
        found |= {f"layer_maps/{name}": maps[0].float().cpu() for name, maps in self.observation.layer_maps.items()}
        found |= {f"head_maps/{name}": maps for name, maps in self.head_maps.items()}
        found |= {f"head_weights/{name}": torch.tensor(values) for name, values in self.prediction.head_weights.items()}
        found["layer_weights"] = torch.tensor(list(self.prediction.layer_weights.values()))
        return {name: tensor.contiguous().clone() for name, tensor in found.items()}

    def save(self, folder: Path, pixels: Sequence[tuple[int, int]] = (), tensors: bool = False) -> list[Path]:
        """Write the pictures and, if asked, `attention.safetensors`; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, picture in self.figures(pixels).items():
            paths.append(folder / f"{name}.png")
            picture.save(paths[-1])
        return paths + self.save_tensors(folder) if tensors else paths

    def save_tensors(self, folder: Path) -> list[Path]:
        """Write `attention.safetensors` alone."""
        layers = "\n".join(self.prediction.layer_weights)
        facts = {"prompt": self.prompt.text, "tokens": "\n".join(self.prompt.tokens), "layers": layers}
        path = folder / "attention.safetensors"
        save_file(self.tensors(), path, metadata=facts)
        return [path]

    def _repr_html_(self) -> str:
        cells = [(str(i), token, part, f"{mean:.2f}", f"{most:.2f}") for i, token, part, mean, most in self.token_rows()]
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        content = list(self.prompt.content)
        names = [f"{i}: {self.prompt.tokens[i]}" for i in content]
        pictures = (self.picture(), plots.map_grid([("raw", self.token_maps[content].numpy())], names))
        images = "".join(f'<img alt="" src="data:image/png;base64,{_base64(picture)}">' for picture in pictures)
        head = "".join(f"<th>{name}</th>" for name in TOKEN_COLUMNS)
        return f"<p>{html.escape(self.prompt.text)}</p><div>{images}</div><table><tr>{head}</tr>{rows}</table>"


def _base64(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
