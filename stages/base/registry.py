"""Registries of classes chosen by name, such as annotators and smoothers, including those of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from stages.base.errors import UsageError
from stages.base.mistakes import unknown

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


class UnknownName(UsageError, KeyError):
    """No class is registered under this name."""


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes of one kind by name.

    Built-in classes register themselves when their modules are imported, on first access. Classes of other packages
    are found through entry points of the same names. Each is imported when it is first used, so a broken package
    affects only jobs that use it.

    Args:
        kind: What messages call one of the classes.
        base: The base class of all of them.
        name_of: Returns the name of a class.
        package: The package whose modules register the built-in classes. None if the registry's own module does.
        group: The entry point group. None if other packages cannot add classes.
    """

    def __init__(
        self,
        kind: str,
        base: type,
        name_of: Callable[[type[T]], str],
        *,
        package: str | None = None,
        group: str | None = None,
    ):
        self.kind, self.base, self.name_of, self.package, self.group = kind, base, name_of, package, group
        self._registered: dict[str, type[T]] = {}

    def register(self, item: type[T]) -> type[T]:
        """Add a built-in class. Use as a decorator."""
        self._registered[self.name_of(item)] = item
        return item

    @cached_property
    def built_in(self) -> dict[str, type[T]]:
        """The classes that come with this program, by name."""
        if self.package is not None:
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                if not module.ispkg:
                    importlib.import_module(f"{self.package}.{module.name}")
        return dict(sorted(self._registered.items()))

    @cached_property
    def plugins(self) -> dict[str, EntryPoint]:
        """The entry points of other packages, by name. Built-in classes have priority, then the first entry point."""
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group) if self.group else ():
            if entry.name not in self.built_in:
                found.setdefault(entry.name, entry)
        return found

    def __getitem__(self, name: str) -> type[T]:
        """Return the class of this name.

        Raises:
            UnknownName: No class has this name.
            UsageError: The package that provides the class is broken.
        """
        if name in self.built_in:
            return self.built_in[name]
        if name not in self.plugins:
            raise UnknownName(unknown(self.kind, name, self))
        return self._load(self.plugins[name])

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self.plugins

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self.plugins

    def __len__(self) -> int:
        return len(self.built_in) + len(self.plugins)

    def usable(self) -> tuple[dict[str, type[T]], list[str]]:
        """Return all classes that can be imported, by name, and messages about the others."""
        found, problems = dict(self.built_in), []
        for name in self.plugins:
            try:
                found[name] = self[name]
            except UsageError as error:
                problems.append(f"{error.message}: {error.hint}")
        return found, problems

    def version(self, name: str) -> str | None:
        """Return name and version of the package that provides the class `name`. None if it is built in."""
        return None if name in self.built_in else _package(self.plugins[name])

    def _load(self, entry: EntryPoint) -> type[T]:
        try:
            found = entry.load()
        except Exception as error:  # importing another package can raise anything
            reason = (str(error).strip().splitlines() or [""])[0]
            raise self._broken(entry, f"cannot be loaded: {type(error).__name__}: {reason}") from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise self._broken(entry, f"is broken: {entry.value} does not extend {self.base.__name__}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise self._broken(entry, f"is broken: {entry.value} does not implement {', '.join(missing)}")
        item = cast("type[T]", found)
        if (name := self.name_of(item)) != entry.name:
            raise self._broken(entry, f"is broken: its class is named {name!r}")
        return item

    def _broken(self, entry: EntryPoint, what: str) -> UsageError:
        package = entry.dist.name if entry.dist else entry.module
        return UsageError(
            f"the {self.kind} {entry.name!r} of the package {_package(entry)} {what}",
            f"update the package, or remove it with pip uninstall {package}",
        )


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module


@dataclass(frozen=True, eq=False)
class NameIn:
    """Annotation of a string that is a name in a registry: `Annotated[str, NameIn(SMOOTHERS)]`."""

    registry: Mapping[str, object]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": list(self.registry), "type": "string"}

    def _known(self, name: str) -> str:
        try:
            _ = self.registry[name]
        except UsageError as error:
            raise ValueError("; ".join(part for part in (error.message, error.hint) if part)) from None
        return name


@dataclass(frozen=True, eq=False)
class OptionsIn(Generic[Model]):
    """Annotation of a value that holds the options of a class in a registry, for its JSON Schema."""

    registry: Registry[Model]
    shorthand: bool = False
    """Whether the name alone is allowed, too."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        options, _ = self.registry.usable()
        choices = [handler(model.__pydantic_core_schema__) for model in options.values()]
        return {"anyOf": [*([{"type": "string"}] if self.shorthand else []), *choices]}
