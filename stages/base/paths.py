"""Types of job keys that name files and models, and the walk that finds them in a job.

    style_image: InputFile | None = None

Nothing else has to be said about such a key: it is resolved relative to the job file, checked before the stages that
read it, never overwritten, refused if it is a pickle that may run code, and known by its content in fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stages.base.fingerprint import identify
from stages.base.mistakes import joined
from stages.models import EMBEDDED, SINGLE_FILES, TOKENIZER, embedded

# What is read of a local model folder: weights and configuration, not the other formats that may be there.
MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin")
MODEL_PARTS = ("", "tokenizer", "text_encoder", "unet", "vae", "scheduler")

Model = TypeVar("Model", bound=BaseModel)
Where = tuple[str | int, ...]


# --- the types ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FilePath:
    """A file or folder that is read."""

    may_be_pickle = False

    def resolve(self, name: str, folder: Path) -> str:
        """`name` as an absolute path, if it is relative to `folder`."""
        return str(folder / _expanded(name))

    def local(self, name: str) -> Path | None:
        """The file or folder on this machine that a resolved `name` means, None if it is no input from there."""
        return Path(name)

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        """What fingerprints hold in place of `name`, a key of `owner`. `known` is what an earlier one holds."""
        return identify(name, known)


@dataclass(frozen=True)
class TensorPath(FilePath):
    """A file of weights."""

    may_be_pickle = True


@dataclass(frozen=True)
class ModelPath(TensorPath):
    """A hub id, an embedded model, a local folder or a single file."""

    def resolve(self, name: str, folder: Path) -> str:
        # "name/model" is a hub id unless there is such a folder. "./x", "../x", "~/x", "/x" and names of single files
        # are always paths.
        if name in EMBEDDED or not (
            name.startswith((".", "~", "/")) or name.endswith(SINGLE_FILES) or (folder / name).exists()
        ):
            return name
        return super().resolve(name, folder)

    def local(self, name: str) -> Path | None:
        return Path(name) if Path(name).is_absolute() else None

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        folder = embedded(name) or Path(name)  # an embedded model may differ from one version to the next
        if not folder.is_absolute():
            return name
        tokenizer = folder.parent / TOKENIZER
        if folder.is_file() and tokenizer.is_dir():
            parts = {"file": folder, TOKENIZER: tokenizer}
            return {part: identify(path, value_at(known, (part,))) for part, path in parts.items()}
        return identify(folder, known, MODEL_FILES, MODEL_PARTS)


@dataclass(frozen=True)
class WeightsPath(ModelPath):
    """A hub id or a local folder, of which `files` of the owning class are read."""

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        return identify(name, known, owner.files) if self.local(name) else name  # type: ignore[attr-defined]


@dataclass(frozen=True)
class OutputPath(FilePath):
    """A file or folder that is written, not read."""

    def local(self, name: str) -> Path | None:
        return None

    def identify(self, name: str, owner: BaseModel, known: object) -> object:
        return name


InputFile = Annotated[str, FilePath()]
TensorFile = Annotated[str, TensorPath()]
ModelName = Annotated[str, ModelPath()]
WeightsName = Annotated[str, WeightsPath()]
OutputFolder = Annotated[str, OutputPath()]


# --- the walk -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A path in a job.

    Attributes:
        where: The keys and list indexes that lead to it, as fingerprints have them.
        name: The path itself, or the name of a model.
        kind: What it is.
        owner: The model that it is part of.
        field: The owner's field.
    """

    where: Where
    name: str
    kind: FilePath
    owner: BaseModel
    field: str

    @property
    def key(self) -> str:
        """The job's own key that it is part of."""
        return str(self.where[0])

    @property
    def label(self) -> str:
        """How messages name the place. A list's item may be a path or an object with one: both are named alike."""
        return joined(self.where[:-1] if len(self.where) > 1 and self.field == "path" else self.where)

    @property
    def local(self) -> Path | None:
        """The file or folder on this machine that is read, if there is to be one."""
        return self.kind.local(self.name)


def replace_paths(model: Model, change: Callable[[Place], object], where: Where = ()) -> Model:
    """A copy of `model` with `change(place)` in every place of a path, in nested models and lists, too."""
    changed = {}
    for name, field in type(model).model_fields.items():
        if name in model.__dict__:  # not so for what is missing in a job with mistakes
            here, kind = (*where, field.serialization_alias or name), _kind(field)
            place = None if kind is None else Place(here, "", kind, model, name)
            changed[name] = _replaced(getattr(model, name), here, place, change)
    return model.model_copy(update={name: new for name, new in changed.items() if new != getattr(model, name)})


def find_paths(model: BaseModel) -> list[Place]:
    """Every path in `model`."""
    found = []

    def note(place: Place) -> str:
        found.append(place)
        return place.name

    replace_paths(model, note)
    return found


def identified(model: BaseModel, keys: Collection[str], known: object) -> dict[str, object]:
    """The values of some `keys` as fingerprints hold them: JSON, with contents of files in place of their names.

    Args:
        model: The job.
        keys: Its keys that count.
        known: What an earlier fingerprint holds, so that unchanged files need not be read again.
    """

    def identity(place: Place) -> object:
        if place.key not in keys:
            return place.name
        return place.kind.identify(place.name, place.owner, value_at(known, place.where))

    values = replace_paths(model, identity).model_dump(mode="json", by_alias=True, warnings=False, include=set(keys))
    return {key: values[key] for key in keys}


def value_at(value: object, where: Where) -> object:
    """What nested dictionaries and lists hold at some place, None if it does not exist."""
    for part in where:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _replaced(value: object, where: Where, field: Place | None, change: Callable[[Place], object]) -> object:
    """`value` with all paths in it changed. `field` is the place of the field that it is part of, if that has paths."""
    if isinstance(value, BaseModel):
        return replace_paths(value, change, where)
    if isinstance(value, list):
        return [_replaced(item, (*where, index), field, change) for index, item in enumerate(value)]
    if isinstance(value, str) and value and field is not None:
        return change(replace(field, where=where, name=value))
    return value


def _kind(field: FieldInfo) -> FilePath | None:
    """What the strings in a field name, if they are paths."""
    return next(_kinds((*field.metadata, field.annotation)), None)


def _kinds(hints: tuple[object, ...]) -> Iterator[FilePath]:
    for hint in hints:
        if isinstance(hint, FilePath):
            yield hint
        yield from _kinds(get_args(hint))


def _expanded(path: str) -> Path:
    """`~/x` in the user's home folder. `./~x`, or `~x` where there is no such user, is a name like any other."""
    try:
        return Path(path).expanduser() if path.startswith("~") else Path(path)
    except RuntimeError:
        return Path(path)
