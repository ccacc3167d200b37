"""Two tiny networks in ONNX files laid out as DWPose's: a detector (YOLOX) and an estimator of points (RTMPose).

They see blue discs as people, and green ones as dogs. The estimator finds the disc in what it is shown and puts 133
points about its centre, `OFFSETS` of its own pixels away, with the confidences `SURE`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # RGB, of ImageNet
DETECTOR_SIZE, ESTIMATOR_SIZE = (640, 640), (384, 288)  # height, width
BOX = (200, 320)  # px of the detector's input: width and height of everybody
CELLS = {8: 6400, 16: 1600, 32: 400}  # stride: how many; only the last find anything
DOG = 16  # COCO's class

Constants: TypeAlias = dict[str, np.ndarray | np.float32]
Shapes: TypeAlias = dict[str, list[int | str]]

REACH = 90  # px of the estimator's input, at most
UNSURE_OF_Y = 8  # the right elbow


def _offsets() -> np.ndarray:
    """A person who stands with arms spread, int [133, 2], x and y from the disc's centre."""
    body = [
        (0, -60), (4, -64), (-4, -64), (8, -60), (-8, -60), (20, -40), (-20, -40), (45, -40), (-45, -40), (70, -40),
        (-70, -40), (12, 10), (-12, 10), (12, 45), (-12, 45), (12, 80), (-12, 80),
    ]  # fmt: skip
    feet = [(14, 84), (18, 84), (10, 84), (-14, 84), (-18, 84), (-10, 84)]
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    face = np.stack([14 * np.cos(angles), -60 + 14 * np.sin(angles)], axis=1).round()
    finger = np.array([(0, 0)] + [(3 * (joint + 1), 4 * number - 8) for number in range(5) for joint in range(4)])
    wrist = np.array([72, -40])
    left, right = wrist + finger, wrist * [-1, 1] + finger * [-1, 1]
    return np.concatenate([body, feet, face, left, right]).astype(int)


OFFSETS = _offsets()
SURE = np.full((133, 2), 0.9, np.float32)
SURE[UNSURE_OF_Y, 1] = 0.1  # more than 0.3 on average
SURE[60] = 0.2  # a point of the face


def detector() -> bytes:
    """`images` float32 [1, 3, 640, 640], BGR, 0..255 → `output` [1, 8400, 85]: x, y, log width, log height, objectness
    and 80 classes, in cells of their strides."""
    blue, green = np.array([[1, -1, -1], [-1, 1, -1]])
    found = CELLS[32]
    where = np.array([0.5, 0.5, *np.log(np.array(BOX) / 32)], np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "colours", "threshold"], ["coloured"]),
        helper.make_node("Clip", ["coloured", "zero", "one"], ["kinds"]),
        helper.make_node("AveragePool", ["kinds"], ["pooled"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Reshape", ["pooled", "as_rows"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["scores"], ["objects"], axes=[2], keepdims=1),
        helper.make_node("MatMul", ["scores", "classes"], ["probabilities"]),
        helper.make_node("Expand", ["where", "where_shape"], ["boxes"]),
        helper.make_node("Concat", ["boxes", "objects", "probabilities"], ["large"], axis=2),
        helper.make_node("Expand", ["zero", "others_shape"], ["others"]),
        helper.make_node("Concat", ["others", "large"], ["output"], axis=1),
    ]
    classes = np.zeros((2, 80), np.float32)
    classes[0, 0] = classes[1, DOG] = 1
    constants: Constants = {
        "colours": np.stack([blue, green]).reshape(2, 3, 1, 1).astype(np.float32) / 105,
        "threshold": np.full(2, -150 / 105, np.float32),
        "zero": np.float32(0), "one": np.float32(1),
        "as_rows": np.array([1, 2, found]),
        "classes": classes,
        "where": where, "where_shape": np.array([1, found, 4]),
        "others_shape": np.array([1, sum(CELLS.values()) - found, 85]),
    }  # fmt: skip
    return _model(nodes, constants, {"images": [1, 3, *DETECTOR_SIZE]}, {"output": [1, sum(CELLS.values()), 85]})


def estimator() -> bytes:
    """`input` float32 [batch, 3, 384, 288], RGB, normalised → `simcc_x` [batch, 133, 576], `simcc_y` [batch, 133, 768]:
    for each point, how likely it lies in each half column and half row."""
    height, width = ESTIMATOR_SIZE
    nodes = [
        helper.make_node("Conv", ["input", "colours", "threshold"], ["coloured"]),
        helper.make_node("Clip", ["coloured", "zero", "one"], ["blue"]),
    ]
    kernels: Constants = {}
    for axis, name in enumerate("xy"):
        nodes += [
            helper.make_node("ReduceMean", ["blue"], [f"sums_{name}"], axes=[3 if name == "y" else 2], keepdims=0),
            helper.make_node("Resize", [f"sums_{name}", "", "twice"], [f"fine_{name}"], mode="linear"),
            helper.make_node("ReduceMax", [f"fine_{name}"], [f"peak_{name}"], axes=[2], keepdims=1),
            helper.make_node("Add", [f"peak_{name}", "little"], [f"safe_{name}"]),
            helper.make_node("Div", [f"fine_{name}", f"safe_{name}"], [f"curve_{name}"]),
            helper.make_node("Conv", [f"curve_{name}", f"kernels_{name}"], [f"simcc_{name}"], pads=[2 * REACH] * 2),
        ]
        kernel = np.zeros((133, 1, 4 * REACH + 1), np.float32)
        kernel[range(133), 0, 2 * REACH - 2 * OFFSETS[:, axis]] = SURE[:, axis]
        kernels[f"kernels_{name}"] = kernel
    signs = np.array([-1, -1, 1])
    constants: Constants = {
        "colours": (signs * STD / 105).reshape(1, 3, 1, 1).astype(np.float32),
        "threshold": np.array([(signs * MEAN).sum() / 105 - 150 / 105], np.float32),
        "zero": np.float32(0), "one": np.float32(1), "little": np.float32(1e-6),
        "twice": np.array([1, 1, 2], np.float32),
    } | kernels  # fmt: skip
    return _model(
        nodes, constants, {"input": ["batch", 3, height, width]},
        {"simcc_x": ["batch", 133, 2 * width], "simcc_y": ["batch", 133, 2 * height]},
    )  # fmt: skip


def _model(nodes: list[onnx.NodeProto], constants: Constants, inputs: Shapes, outputs: Shapes) -> bytes:
    def infos(shapes: Shapes) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", infos(inputs), infos(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
