"""People in single frames: their masks by SAM 2, and their skeletons by ViTPose. RT-DETR finds them.

All three networks run in transformers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stages.annotators import ANNOTATORS, Weighted
from stages.annotators.controlnet_aux import quiet
from stages.annotators.pose import BODY, PEOPLE, POINTS, draw
from stages.annotators.pretrained import FILES, pretrained
from stages.base.arrays import Floats, Image, Images, Mask
from stages.base.paths import WeightsName
from stages.models.weights import Weights

PERSON = "person"  # the detector's class, as COCO calls it
NECK = 17  # COCO's 17 points have no neck; it is put between the shoulders, after them
SHOULDERS = [5, 6]
# The points that are OpenPose's 18 of the body.
OPENPOSE_BODY = [0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
SURE = 0.3  # min. confidence of points that are drawn


class PeopleOptions(Weighted):
    """Options of annotators that need a detector of people."""

    files = FILES
    detector: WeightsName = "PekingU/rtdetr_v2_r18vd"
    """Hub id or local folder of an object-detection model that knows persons."""
    threshold: float = Field(0.5, ge=0, le=1)
    """Min. confidence of a person."""

    def weights(self, key: str) -> Weights:
        detector = Weights(f"{key}.detector", self.detector, self.files)
        return Weights(key, self.model, self.files, (detector,))

    def people(self, weights: Weights | None, device: str) -> tuple[Weights, Detector]:
        """Return the weights of the model, and the detector."""
        assert weights is not None, "see `weights`"
        return weights, Detector(weights.others[0], device, self.threshold)


@ANNOTATORS.register
class PersonMaskOptions(PeopleOptions):
    """Masks of people, white on black, by RT-DETR and SAM 2."""

    name: Literal["person_mask"]
    model: WeightsName = "facebook/sam2.1-hiera-small"
    """Hub id or local folder of a SAM 2 model."""

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> PersonMask:
        return PersonMask(*self.people(weights, device), device)


@ANNOTATORS.register
class VitposeOptions(PeopleOptions):
    """Skeletons of people's bodies by RT-DETR and ViTPose."""

    name: Literal["vitpose"]
    model: WeightsName = "usyd-community/vitpose-base-simple"
    """Hub id or local folder of a ViTPose model with COCO's 17 points."""

    def build(self, style_image: Image | None, weights: Weights | None, device: str) -> Vitpose:
        return Vitpose(*self.people(weights, device), device)


class Detector:
    """Finds people in a frame."""

    def __init__(self, weights: Weights, device: str, threshold: float):
        self.weights, self.device, self.threshold = weights, device, threshold

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The image processor and the network."""
        return pretrained(self.weights, "AutoModelForObjectDetection", "an object-detection model", self.device)

    def boxes(self, frame: Image) -> Floats:
        """Return the boxes of people, best first: left, top, right, bottom in pixels, float32 [N, 4], inside the frame.

        At most PEOPLE are returned.
        """
        import torch

        processor, network = self.parts
        height, width = frame.shape[:2]
        with quiet(), torch.inference_mode():
            inputs = processor(images=[frame], return_tensors="pt").to(network.device)
            (found,) = processor.post_process_object_detection(
                network(**inputs), threshold=self.threshold, target_sizes=[(height, width)]
            )
        names = network.config.id2label
        people = torch.tensor([names[int(label)].lower() == PERSON for label in found["labels"]], dtype=torch.bool)
        boxes = found["boxes"].cpu()[people].float().numpy()
        best = np.argsort(-found["scores"].cpu()[people].float().numpy(), kind="stable")[:PEOPLE]
        inside: Floats = boxes[best].clip(0, np.array([width, height, width, height], np.float32))
        return inside[np.all(inside[:, 2:] > inside[:, :2], axis=1)]


class PersonMask:
    """Draws the people of each frame white on black."""

    def __init__(self, weights: Weights, detector: Detector, device: str):
        self.weights, self.detector, self.device = weights, detector, device

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The processor and the network."""
        images, network = pretrained(self.weights, "Sam2Model", "a SAM 2 model", self.device)
        from transformers import Sam2Processor

        return Sam2Processor(images, target_size=images.size["height"]), network

    def maps(self, frames: Images) -> Images:
        masks = np.stack([self._mask(frame) for frame in frames])
        return np.repeat(masks[..., None].astype(np.uint8) * 255, 3, axis=3)

    def _mask(self, frame: Image) -> Mask:
        """Return which pixels of a frame show people, bool [H, W]."""
        boxes = self.detector.boxes(frame)
        if not len(boxes):
            return np.zeros(frame.shape[:2], np.bool_)
        import torch

        processor, network = self.parts
        with quiet(), torch.inference_mode():
            inputs = processor(images=[frame], input_boxes=[boxes.tolist()], return_tensors="pt").to(network.device)
            found = network(**inputs, multimask_output=False).pred_masks.cpu()
            (masks,) = processor.post_process_masks(found, inputs["original_sizes"].cpu())
        every: Mask = masks.any(dim=0)[0].numpy()
        return every


class Vitpose:
    """Draws skeletons per frame, in OpenPose's colours."""

    def __init__(self, weights: Weights, detector: Detector, device: str):
        self.weights, self.detector, self.device = weights, detector, device

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The image processor and the network."""
        return pretrained(self.weights, "VitPoseForPoseEstimation", "a ViTPose model", self.device)

    def maps(self, frames: Images) -> Images:
        return np.stack([draw(self.pose(frame), *frame.shape[:2]) for frame in frames])

    def pose(self, frame: Image) -> Floats:
        """Return the poses of a frame as in stages.annotators.pose, [PEOPLE, POINTS, 2]."""
        pose = np.full((PEOPLE, POINTS, 2), np.nan, np.float32)
        boxes = self.detector.boxes(frame)
        if not len(boxes):
            return pose
        import torch

        processor, network = self.parts
        corners = boxes[:, :2]
        shaped = [np.hstack([corners, boxes[:, 2:] - corners]).tolist()]  # left, top, width, height
        with quiet(), torch.inference_mode():
            inputs = processor([frame], boxes=shaped, return_tensors="pt").to(network.device)
            options = {"dataset_index": torch.zeros(len(boxes), dtype=torch.int64, device=network.device)}
            several = network.config.backbone_config.num_experts > 1  # ViTPose++; the first expert is COCO's
            (people,) = processor.post_process_pose_estimation(
                network(**inputs, **(options if several else {})), boxes=shaped
            )
        for place, person in enumerate(people):
            pose[place, BODY] = body(person["keypoints"].cpu().numpy(), person["scores"].cpu().numpy(), frame)
        return pose


def body(points: Floats, scores: Floats, frame: Image) -> Floats:
    """Convert COCO's points to OpenPose's 18 of the body, NaN where they are not sure.

    Args:
        points: x and y in pixels of the frame [17, 2].
        scores: Confidences [17].
        frame: The frame.

    Returns:
        x and y as fractions of the frame [18, 2].
    """
    height, width = frame.shape[:2]
    seen = np.where(scores[:, None] > SURE, points / (width, height), np.nan)
    with_neck: Floats = np.concatenate([seen, seen[SHOULDERS].mean(axis=0, keepdims=True)])
    return with_neck[OPENPOSE_BODY]
