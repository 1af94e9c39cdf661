"""Statements that are run for each instance: compiled once for their engine, and handed to its driver as text.

What SQLAlchemy does for a statement each time it runs (its cache key, its parameters, its result) costs several times
what the database needs for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

_Convert = Callable[[Any], Any]


class Prepared:
    """A statement for one engine; what it takes are values of its columns, what it gives is the driver's own."""

    def __init__(self, statement: ClauseElement, engine: Engine) -> None:
        """Compile it; what is to be given each time are its `bindparam`s."""
        compiled = statement.compile(dialect=engine.dialect)
        assert isinstance(compiled, SQLCompiler)
        self._text = str(compiled)
        self._order = compiled.positiontup
        """Of the parameters, where the driver goes by their places."""
        self._converts = {name: _converter(bind.type, engine.dialect) for bind, name in compiled.bind_names.items()}
        self._constants = {
            name: self._converted(name, bind.effective_value)
            for bind, name in compiled.bind_names.items()
            if not bind.required
        }

    def first(self, connection: Connection, values: Mapping[str, object]) -> tuple[Any, ...] | None:
        """Return the first row that it gives, None if there is none, or it gives none."""
        given = self._constants | {name: self._converted(name, value) for name, value in values.items()}
        parameters = given if self._order is None else tuple(given[name] for name in self._order)
        result = connection.exec_driver_sql(self._text, parameters)
        row = result.first() if result.returns_rows else None
        return None if row is None else tuple(row)

    def _converted(self, name: str, value: object) -> object:
        convert = self._converts[name]
        return value if convert is None else convert(value)


def _converter(kind: Any, dialect: Dialect) -> _Convert | None:
    convert: _Convert | None = kind.dialect_impl(dialect).bind_processor(dialect)
    return convert
