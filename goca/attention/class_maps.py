"""From what a forward showed to class maps: calibrated and refined, for one prompt of a picture or for several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from goca.attention.statistics import Observation
from goca.attention.stitched import StitchedObservation, merged
from goca.errors import ModelError
from goca.method import Method
from goca.method.across import side_by_side
from goca.method.calibration import Calibration, ClassMaps
from goca.method.outside import MapFiles
from goca.method.refinement import RefinementContext
from goca.prompts.prompt import Prompt
from goca.timing import StageTimer

Both = tuple[ClassMaps, ClassMaps]  # calibrated, and refined as well


@dataclass(frozen=True)
class ClassMapper:
    """The stages of a method that work on one picture, as one view shows it.

    Args:
        method: its calibration, refinement and size rule are used.
        timer: charged with the stages `calibrate` and `refine`.
        max_bytes: of temporary tensors.
        exponents: of the step `power`, by class.
        classes: of the class table, background included.
    """

    method: Method
    timer: StageTimer
    max_bytes: int
    exponents: Mapping[int, float] | None = None
    classes: int | None = None

    def __call__(self, image_id: str, picture: Tensor, seen: Observation, rows: Mapping[int, Prompt]) -> Both:
        """Class maps of a picture (3, H, W), of the whole or, where the size rule says so, of every window by itself.

        Args:
            image_id: of the picture, without what a view adds.
            seen: what the forward showed.
            rows: row of the observation -> its prompt; several are taken as one.

        Raises:
            ModelError: attention that is not finite.
        """
        merge = getattr(self.method.sizing, "merge", "token_maps")
        whole = merge == "token_maps" or isinstance(self.method.calibration, MapFiles)
        if whole or not isinstance(seen, StitchedObservation):
            return self._of(image_id, picture, seen, rows)
        parts = zip(seen.windows, seen.parts, strict=True)
        each = [self._of(image_id, window.cut(picture), part, rows) for window, part in parts]
        calibrated, refined = (merged(maps, seen) for maps in zip(*each, strict=True))
        return calibrated, refined

    def _of(self, image_id: str, picture: Tensor, seen: Observation, rows: Mapping[int, Prompt]) -> Both:
        token_maps = [seen.token_maps[row] for row in rows]
        if not all(maps.isfinite().all() for maps in token_maps):
            raise ModelError(f"{image_id}: the model gave attention that is not finite; try model.dtype=float32")
        first = next(iter(rows))
        with self.timer("calibrate"):
            if isinstance(self.method.calibration, MapFiles):
                calibrated = self.method.calibration.of_image(image_id, self.classes)
            else:
                calibrated = self._calibrated(self.method.calibration, token_maps, seen, rows)
        with self.timer("refine"):
            context = RefinementContext(
                size=(token_maps[0].shape[-2], token_maps[0].shape[-1]),
                self_attention=seen.self_attention(first),
                features={name: feature[first] for name, feature in seen.features.items()},
                image=picture,
                max_bytes=self.max_bytes,
            )
            return calibrated, self.method.refinement.refine(calibrated, context)

    def _calibrated(
        self, calibration: Calibration, token_maps: Sequence[Tensor], seen: Observation, rows: Mapping[int, Prompt]
    ) -> ClassMaps:
        prompts = list(rows.values())
        levels = [([maps[row] for row in rows], weight) for maps, weight in seen.level_maps]
        if len(prompts) == 1:
            own = [(maps[0], weight) for maps, weight in levels]
            return calibration(token_maps[0], prompts[0], own, self.exponents)
        how = prompts[0].across
        joined, groups = side_by_side(token_maps, prompts, how)
        together = [(side_by_side(maps, prompts, how)[0], weight) for maps, weight in levels]
        return calibration(joined, groups, together, self.exponents)
