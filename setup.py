"""Build libebsynth. Everything else is configured in pyproject.toml.

DIFFSYNTH_NATIVE=off skips the library, DIFFSYNTH_NATIVE=require fails if it cannot be built. CMAKE_ARGS is passed to
CMake.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
MODE = os.environ.get("DIFFSYNTH_NATIVE", "auto")


class BuildLibrary(build_ext):
    """Builds the library with CMake instead of the compiler of a Python extension."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(SUFFIX))  # without the tag of the Python version

    def run(self) -> None:
        if self.inplace:  # an outdated library is worse than none
            Path("native", f"libebsynth{SUFFIX}").unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).absolute()
        library.unlink(missing_ok=True)
        build = str(Path(self.build_temp, "libebsynth"))
        options = ["-S", "native", "-B", build, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
        self.cmake("--fresh", *options)
        try:
            self.cmake("--build", build, "--parallel")
        except CompileError:  # for example if nvcc is too old
            self.cmake("-DEBSYNTH_CUDA=OFF", *options)
            self.cmake("--build", build, "--parallel")
        self.cmake("--install", build, "--prefix", str(library.parent))

    def cmake(self, *arguments: str) -> None:
        environment = ({"CMAKE_GENERATOR": "Ninja"} if shutil.which("ninja") else {}) | os.environ
        try:
            subprocess.run(["cmake", *arguments], check=True, env=environment)
        except (OSError, subprocess.CalledProcessError) as e:
            what = "cmake cannot be run" if isinstance(e, OSError) else f"cmake {arguments[0]} failed, see above"
            after = "" if MODE == "require" else "; patch matching will run on its slower numba back end"
            raise CompileError(f"{what}{after}") from e


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform  # the library does not depend on Python


library = Extension("native.libebsynth", sources=[], optional=MODE != "require")
setup(
    ext_modules=[] if MODE == "off" else [library],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
