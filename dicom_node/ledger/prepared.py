"""Statements that are run for each instance: compiled once for their engine, and run by its driver alone.

What SQLAlchemy does for a statement each time it runs (its context, its parameters, its result) costs several times
what the database needs for it.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from sqlalchemy import Dialect, Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError
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
        self._dialect = engine.dialect
        self._order = compiled.positiontup
        """Of the parameters, where the driver goes by their places."""
        self._converts = {name: _converter(bind.type, engine.dialect) for bind, name in compiled.bind_names.items()}
        self._constants = {
            name: self._converted(name, bind.effective_value)
            for bind, name in compiled.bind_names.items()
            if not bind.required
        }

    def first(self, connection: PoolProxiedConnection, values: Mapping[str, object]) -> tuple[Any, ...] | None:
        """Return the first row that it gives, None if there is none, or it gives none.

        Raises:
            DBAPIError: as SQLAlchemy would.
        """
        given = self._constants | {name: self._converted(name, value) for name, value in values.items()}
        parameters = given if self._order is None else tuple(given[name] for name in self._order)
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute(self._text, parameters)
                row: tuple[Any, ...] | None = cursor.fetchone() if cursor.description else None
        except failure(self._dialect) as error:
            raise as_sqlalchemy(error, self._dialect) from error
        return row

    def _converted(self, name: str, value: object) -> object:
        convert = self._converts[name]
        return value if convert is None else convert(value)


def failure(dialect: Dialect) -> type[Exception]:
    """Return what a driver raises."""
    assert dialect.dbapi is not None
    kind: type[Exception] = dialect.dbapi.Error
    return kind


def as_sqlalchemy(error: Exception, dialect: Dialect) -> DBAPIError:
    """Return what SQLAlchemy would raise for an error of the driver; it names no parameters: they are a patient's."""
    found = DBAPIError.instance(None, None, error, failure(dialect), dialect=dialect)
    assert isinstance(found, DBAPIError)
    return found


def _converter(kind: Any, dialect: Dialect) -> _Convert | None:
    convert: _Convert | None = kind.dialect_impl(dialect).bind_processor(dialect)
    return convert
