"""Types of job keys that hold paths and names of models, and functions that find them in a job.

    style_image: InputFile | None = None

The type is all such a key needs. Its value is resolved relative to the job file, checked before the stages that read
it, never overwritten, refused if it is a pickle, and represented by the file's content in fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, TypeVar, cast, get_args

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from stages.base.fingerprint import identify
from stages.base.mistakes import joined
from stages.models import EMBEDDED, SINGLE_FILES, TOKENIZER, embedded

# The files of a local model folder that are read. Others may hold the same weights in other formats.
MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin")
MODEL_PARTS = ("", "tokenizer", "text_encoder", "unet", "vae", "scheduler")

Model = TypeVar("Model", bound=BaseModel)
Where = tuple[str | int, ...]


# --- types ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FilePath:
    """A file or folder that is read."""

    may_be_pickle = False

    def resolve(self, name: str, folder: Path) -> str:
        """Return `name` as an absolute path. If relative, it is relative to `folder`."""
        return str(folder / _expanded(name))

    def local(self, name: str) -> Path | None:
        """Return the local file or folder that a resolved `name` refers to. None if there is none to read."""
        return Path(name)

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        """Return what fingerprints store in place of `name`.

        Args:
            name: The resolved name.
            owner: The model it is a field of.
            known: What an earlier fingerprint stores.
        """
        return identify(name, known)


@dataclass(frozen=True)
class TensorPath(FilePath):
    """A file of weights."""

    may_be_pickle = True


@dataclass(frozen=True)
class ModelPath(TensorPath):
    """A hub id, an embedded model, a local folder or a single file."""

    def resolve(self, name: str, folder: Path) -> str:
        # "name/model" is a hub id unless such a folder exists. "./x", "../x", "~/x", "/x" and names of single files
        # are always paths.
        if name in EMBEDDED or not (
            name.startswith((".", "~", "/")) or name.endswith(SINGLE_FILES) or (folder / name).exists()
        ):
            return name
        return super().resolve(name, folder)

    def local(self, name: str) -> Path | None:
        return Path(name) if Path(name).is_absolute() else None

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        folder = embedded(name) or Path(name)  # embedded models can differ between versions
        if not folder.is_absolute():
            return name
        tokenizer = folder.parent / TOKENIZER
        if folder.is_file() and tokenizer.is_dir():
            parts = {"file": folder, TOKENIZER: tokenizer}
            return {part: identify(path, value_at(known, (part,))) for part, path in parts.items()}
        return identify(folder, known, MODEL_FILES, MODEL_PARTS)


class HasFiles(Protocol):
    """A class that owns weights."""

    files: ClassVar[tuple[str, ...]]


@dataclass(frozen=True)
class WeightsPath(ModelPath):
    """A hub id or a local folder, from which the owning class reads the files it lists in `files`."""

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        return identify(name, known, cast("HasFiles", owner).files) if self.local(name) else name


@dataclass(frozen=True)
class OutputPath(FilePath):
    """A file or folder that is written, not read."""

    def local(self, name: str) -> Path | None:
        return None

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        return name


@dataclass(frozen=True)
class CachePath(OutputPath):
    """A folder or URL that is written."""

    def resolve(self, name: str, folder: Path) -> str:
        return name if "://" in name else super().resolve(name, folder)


def _possible(name: str) -> str:
    """Return `name`, unless no file can have it."""
    if "\0" in name:
        raise ValueError("must not contain the character NUL")
    return name


InputFile = Annotated[str, FilePath()]
TensorFile = Annotated[str, TensorPath()]
ModelName = Annotated[str, ModelPath()]
WeightsName = Annotated[str, WeightsPath()]
OutputFolder = Annotated[str, OutputPath(), AfterValidator(_possible)]
CacheAddress = Annotated[str, CachePath(), AfterValidator(_possible)]


# --- search ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A path in a job.

    Args:
        where: The keys and list indexes that lead to it, as in fingerprints.
        name: The path, or the name of a model.
        kind: Its type.
        owner: The model that holds it.
        field: The field of `owner`.
    """

    where: Where
    name: str
    kind: FilePath
    owner: BaseModel
    field: str

    @property
    def key(self) -> str:
        """The job's top-level key that holds it."""
        return str(self.where[0])

    @property
    def label(self) -> str:
        """The place as messages name it. Items of a list are named alike, whether paths or objects with a path."""
        return joined(self.where[:-1] if len(self.where) > 1 and self.field == "path" else self.where)

    @property
    def local(self) -> Path | None:
        """The local file or folder that is read, if any."""
        return self.kind.local(self.name)


def replace_paths(model: Model, change: Callable[[Place], object], where: Where = ()) -> Model:
    """Copy `model` with each path replaced by `change(place)`, also in nested models and lists."""
    changed = {}
    for name, field in type(model).model_fields.items():
        if name in model.__dict__:  # a job with mistakes may lack keys
            here, kind = (*where, field.serialization_alias or name), _kind(field)
            place = None if kind is None else Place(here, "", kind, model, name)
            changed[name] = _replaced(getattr(model, name), here, place, change)
    return model.model_copy(update={name: new for name, new in changed.items() if new != getattr(model, name)})


def find_paths(model: BaseModel) -> list[Place]:
    """Return every path in `model`."""
    found = []

    def note(place: Place) -> str:
        found.append(place)
        return place.name

    replace_paths(model, note)
    return found


def identified(model: BaseModel, keys: Collection[str], known: object) -> dict[str, object]:
    """Return values as fingerprints store them: JSON, with identities of files in place of their names.

    Args:
        model: The job.
        keys: The keys to return.
        known: What an earlier fingerprint stores. Files that look unchanged are not read again.
    """

    def identity(place: Place) -> object:
        if place.key not in keys:
            return place.name
        return place.kind.identify(place.name, place.owner, value_at(known, place.where))

    values = replace_paths(model, identity).model_dump(mode="json", by_alias=True, warnings=False, include=set(keys))
    return {key: values[key] for key in keys}


def value_at(value: object, where: Where) -> object:
    """Look up a value in nested dictionaries and lists. None if it does not exist."""
    for part in where:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _replaced(value: object, where: Where, field: Place | None, change: Callable[[Place], object]) -> object:
    """Return `value` with its paths replaced. `field` is the place of its field, None if that holds no paths."""
    if isinstance(value, BaseModel):
        return replace_paths(value, change, where)
    if isinstance(value, list):
        return [_replaced(item, (*where, index), field, change) for index, item in enumerate(value)]
    if isinstance(value, str) and value and field is not None:
        return change(replace(field, where=where, name=value))
    return value


def _kind(field: FieldInfo) -> FilePath | None:
    """Return the type of paths in a field, if its strings are paths."""
    return next(_kinds((*field.metadata, field.annotation)), None)


def _kinds(hints: tuple[object, ...]) -> Iterator[FilePath]:
    for hint in hints:
        if isinstance(hint, FilePath):
            yield hint
        yield from _kinds(get_args(hint))


def _expanded(path: str) -> Path:
    """Expand `~/x` to the user's home folder. `~x` is an ordinary name if no such user exists."""
    try:
        return Path(path).expanduser() if path.startswith("~") else Path(path)
    except RuntimeError:
        return Path(path)
