"""Follow what the user points at through a video: SAM 2's tracker, in transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from stages.annotators.controlnet_aux import quiet
from stages.annotators.pretrained import pretrained
from stages.base.arrays import Image
from stages.models.weights import Weights

Point = tuple[float, float]
"""x and y in pixels of the frame."""

OBJECT = 1  # any number


class Tracker:
    """Draws one object of a video white on black.

    Each mask depends on those before it. The networks remember the frame with the points and the last ones, and so much
    is kept, however long the video is.

    Args:
        weights: A SAM 2 model.
        points: Points of the object.
        others: Points that do not belong to it.
        device: auto, cpu, mps, cuda or cuda:N.
    """

    def __init__(self, weights: Weights, points: Sequence[Point], others: Sequence[Point], device: str):
        self.weights, self.device = weights, device
        self.points = [[list(point) for point in (*points, *others)]]
        self.labels = [[1] * len(points) + [0] * len(others)]

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The processor and the network."""
        images, network = pretrained(self.weights, "Sam2VideoModel", "a SAM 2 model", self.device)
        from transformers import Sam2VideoProcessor, Sam2VideoVideoProcessor

        return Sam2VideoProcessor(images, Sam2VideoVideoProcessor(), target_size=images.size["height"]), network

    def masks(self, frames: Iterable[Image]) -> Iterator[Image]:
        """Yield the mask of each frame, uint8 RGB [H, W, 3]. The points are in the first one."""
        import torch

        processor, network = self.parts
        device = network.device
        session = processor.init_video_session(inference_device=device, dtype=network.dtype)
        for number, frame in enumerate(frames):
            with quiet(), torch.inference_mode():
                inputs = processor(images=frame, return_tensors="pt").to(device)
                if number == 0:
                    processor.add_inputs_to_inference_session(
                        session, 0, OBJECT,
                        input_points=[self.points], input_labels=[self.labels], original_size=frame.shape[:2],
                    )  # fmt: skip
                found = network(inference_session=session, frame=inputs["pixel_values"][0].to(network.dtype))
                (mask,) = processor.post_process_masks([found.pred_masks.cpu()], [frame.shape[:2]])
            self._forget(session, number, network.config)
            yield np.repeat(mask[0, 0].numpy().astype(np.uint8)[..., None] * 255, 3, axis=2)

    @staticmethod
    def _forget(session: Any, number: int, config: Any) -> None:
        """Drop what no frame after this one looks at. transformers keeps everything."""
        session.processed_frames[number] = session.processed_frames[number].new_empty(0)  # their number counts
        oldest = number + 1 - max(config.num_maskmem, config.max_object_pointers_in_encoder)
        for outputs in session.output_dict_per_obj.values():
            for past in [key for key in outputs["non_cond_frame_outputs"] if key < oldest]:
                del outputs["non_cond_frame_outputs"][past]
