"""`diffsynth ebsynth`: the options of the ebsynth program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsynth_cli.__main__ import main
from native import binding
from tests.conftest import scene


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """style.png (RGB), from.png and to.png (grey), rgba.png, all 48 × 40 but small.png."""

    def save(name: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(tmp_path / name)

    style, target = scene(0, 40, 48), scene(5, 40, 48)
    save("style.png", style)
    save("from.png", style[..., 0])
    save("to.png", target[..., 0])
    save("rgba.png", np.dstack([style, style[..., :1]]))
    save("small.png", style[:20, :20])
    return tmp_path


def run(files: Path, *options: str) -> int:
    return main(["ebsynth", "--style", str(files / "style.png"), "--output", str(files / "out.png"), "-q", *options])


def guide(files: Path, source: str = "from.png", target: str = "to.png") -> list[str]:
    return ["--guide", str(files / source), str(files / target)]


def test_the_command_gives_the_librarys_result(files: Path) -> None:
    assert run(files, *guide(files), "--weight", "2", "--patchsize", "7", "--nnf", str(files / "field.npy")) == 0
    style, source, target = (np.array(Image.open(files / name)) for name in ("style.png", "from.png", "to.png"))
    expected = binding.synthesize(
        style[None], source[None, ..., None], target[None, ..., None], guide_weights=[2.0], patch_size=7
    )
    np.testing.assert_array_equal(np.array(Image.open(files / "out.png")), expected.image[0])
    np.testing.assert_array_equal(np.load(files / "field.npy"), expected.nnf[0])


def test_alpha_of_a_style_is_painted_too(files: Path) -> None:
    style = ["ebsynth", "--style", str(files / "rgba.png"), "--output", str(files / "out.png"), "-q"]
    assert main([*style, *guide(files, "style.png", "style.png")]) == 0
    assert Image.open(files / "out.png").mode == "RGBA"


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        ("--style S --guide A B --guide C D", [1.0, None, None]),
        ("--style S --weight 3 --guide A B --weight 2 --guide C D", [3.0, 2.0, None]),
        ("--guide A B --guide C D --weight=2 --style S --weight=3", [3.0, None, 2.0]),
        ("--weight 2 --style S --guide A B", "--weight must follow"),
        ("--style S --guide A --weight 2", "give two images"),
        ("--style S --guide A", "give two images"),
        ("--guide A B", "Missing option '--style'"),
    ],
)
def test_a_weight_belongs_to_the_option_before_it(
    arguments: str,
    weights: list[float | None] | str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    painted = []
    monkeypatch.setattr(
        "diffsynth_cli.videos.ebsynth", lambda style, guides, output, **options: painted.append((guides, options))
    )
    code = main(["ebsynth", *arguments.split(), "-o", "out.png"])
    if isinstance(weights, str):
        assert code == 2 and weights in " ".join(capsys.readouterr().err.split())
        return
    [(guides, options)] = painted
    assert [options["style_weight"], *(guide[2] for guide in guides)] == weights
    assert [tuple(map(str, guide[:2])) for guide in guides] == [("A", "B"), ("C", "D")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guide", "from.png"], "requires 2 arguments"),
        (["--guide", "from.png", "none.png"], "no such file"),
        (["--guide", "small.png", "to.png"], "20×20"),
        (["--guide", "style.png", "to.png"], "channels"),
        (["--guide", "from.png", "to.png", "--patchsize", "6"], "odd"),
        (["--guide", "from.png", "to.png", "--backend", "gpu"], "unknown back end"),
        (["--guide", "from.png", "to.png", "--vote", "best"], "unknown vote"),
        (["--guide", "from.png", "to.png", "--device", "gpu"], "unknown device 'gpu'"),
        (["--guide", "from.png", "to.png", "--device", "mps"], "device: mps"),
        (["--guide", "from.png", "to.png", "--device", "cpu", "--backend", "cuda"], "device: cpu cannot run"),
        (["--guide", "from.png", "to.png", "--nnf", "field.txt"], ".npy"),
        (["--guide", "from.png", "to.png", "--output", "nowhere/out.png"], "does not exist"),
        (["--guide", "from.png", "to.png", "--output", "out.mp4"], "must end in"),
    ],
)
def test_wrong_options_end_with_2_and_write_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    assert run(files, *options) == 2
    assert message in capsys.readouterr().err
    assert sorted(files.iterdir()) == before


def test_a_file_that_is_no_image_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "to.png").write_text("not an image")
    assert run(files, *guide(files)) == 2
    assert "to.png is not an image" in capsys.readouterr().err
