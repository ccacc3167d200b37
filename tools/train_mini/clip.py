"""Write the clip that `diffsynth demo` restyles, a summer's day in the painted world.

python -m tools.train_mini.clip
"""

from fractions import Fraction
from pathlib import Path

from stages.video import Encoding, encode
from tools.train_mini.scenes import random_scene
from tools.train_mini.world import Look, render

CLIP = Path(__file__).resolve().parents[2] / "templates" / "demo.mp4"
SCENE = 1034  # houses, a tree, two people and a dog; the camera and all of them move
FRAMES, FPS, HEIGHT, WIDTH = 24, 12, 160, 256

if __name__ == "__main__":
    scene = random_scene(SCENE, WIDTH / HEIGHT)
    look = Look("summer", "day", "photo")
    encode(
        CLIP, (render(scene, look, HEIGHT, WIDTH, k / FPS) for k in range(FRAMES)), Encoding(fps=Fraction(FPS), crf=14)
    )
    print(f"{CLIP}: {CLIP.stat().st_size / 1000:.0f} kB")
