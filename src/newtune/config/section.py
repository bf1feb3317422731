"""`Section`: a frozen, strictly typed group of keys that remembers which of them were read."""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegativeFloat = Annotated[float, Field(ge=0)]

# Strict tuples refuse lists, which is what YAML gives; the items stay strict.
Strings = Annotated[tuple[str, ...], Field(strict=False)]
Integers = Annotated[tuple[int, ...], Field(strict=False)]
Floats = Annotated[tuple[float, ...], Field(strict=False)]


class Section(BaseModel):
    """Keys that belong together, each documented by the docstring under its field.

    `section.key` records that the key was read, which is how a run proves that no given key was
    ignored. `section.peek("key")`, dumps, comparisons and repr look without recording.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        protected_namespaces=(),  # `model_type` is a key
        defer_build=True,  # a validator is built when its section is first given
    )

    _reads: set[str] = PrivateAttr(default_factory=set)

    if not TYPE_CHECKING:  # for a type checker the fields are what counts

        def __getattribute__(self, name: str) -> Any:
            """Return an attribute; a field's name is remembered as read."""
            if name in type(self).__pydantic_fields__:
                private = super().__getattribute__("__pydantic_private__")
                if private is not None:  # None until construction has ended
                    private["_reads"].add(name)
            return super().__getattribute__(name)

    def peek(self, key: str) -> Any:
        """Return a key's value without recording a read."""
        return self.__dict__[key]

    def nested(self) -> Iterator[tuple[str, "Section"]]:
        """Yield (dotted path, section) for the sections held by this one, all the way down."""
        for key, value in self.__dict__.items():
            items = [(key, value)]
            if isinstance(value, tuple):
                items = [(f"{key}.{index}", item) for index, item in enumerate(value)]
            for path, item in items:
                if isinstance(item, Section):
                    yield path, item
                    yield from ((f"{path}.{below}", section) for below, section in item.nested())

    def reads(self) -> frozenset[str]:
        """Return the keys read so far."""
        return frozenset(self._reads)

    def forget_reads(self) -> None:
        """Count no read made so far, here and in nested sections (rules look at everything)."""
        self._reads.clear()
        for _, section in self.nested():
            section._reads.clear()

    def given(self) -> frozenset[str]:
        """Return the keys whose values the user gave."""
        return frozenset(self.model_fields_set)

    def dump(self) -> dict[str, Any]:
        """Return the values that are given or have a default, as YAML would hold them."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def key_names(cls) -> tuple[str, ...]:
        """Return the names of the keys, in the order of the source."""
        return tuple(cls.__pydantic_fields__)

    @classmethod
    def default(cls, key: str) -> Any:
        """Return what a key is when not given."""
        return cls.__pydantic_fields__[key].get_default(call_default_factory=True)

    @classmethod
    def sections_below(cls) -> Mapping[str, type["Section"]]:
        """Return the keys whose values are sections, or tuples of sections."""
        return _sections_below(cls)

    @classmethod
    def plain_types(cls, key: str) -> set[Any]:
        """Return the types inside a key's annotation: `{str, NoneType}` for `str | None`.

        A mapping to text is `{dict, str}`.
        """
        kinds = list(_flatten(cls.__pydantic_fields__[key].annotation))
        mappings = {dict for kind in kinds if get_origin(kind) is dict}
        return mappings | {kind for kind in kinds if not get_args(kind)}

    @classmethod
    def docs(cls) -> Mapping[str, str]:
        """Return each key's docstring, whitespace joined to single spaces."""
        return _docs(cls)


@cache
def _sections_below(cls: type[Section]) -> Mapping[str, type[Section]]:
    found = {}
    for key, field in cls.__pydantic_fields__.items():
        for annotation in _flatten(field.annotation):
            if isinstance(annotation, type) and issubclass(annotation, Section):
                found[key] = annotation
    return found


def _flatten(annotation: Any) -> Iterator[Any]:
    """Yield the plain types inside unions, tuples and Annotated."""
    yield annotation
    for argument in get_args(annotation):
        yield from _flatten(argument)


@cache
def _docs(cls: type[Section]) -> Mapping[str, str]:
    """Read the docstrings off the source when asked: pydantic would do it at each import."""
    source = Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8")
    body = next(
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    documented = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    documented[field.target.id] = " ".join(text.split())
    return documented
