"""Answers of more than one place: pages from templates, and what went wrong, as the caller can read it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from dicom_node.errors import CannotReopen, InvalidUID, UnknownStudy
from dicom_node.identity import UID, parse_uid
from dicom_node.web.words import FILTERS

_TEMPLATES = "templates"


class Problem(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def known_uid(uid: str) -> UID:
    """Return the UID in a path.

    Raises:
        Problem: it is none, so that there is nothing of this name.
    """
    with refusals():
        return parse_uid(uid)


@contextmanager
def refusals() -> Iterator[None]:
    """Let what the ledger does not hold, or will not do, be a Problem of the caller's."""
    try:
        yield
    except (InvalidUID, UnknownStudy) as error:
        raise Problem(HTTPStatus.NOT_FOUND, str(error)) from error
    except CannotReopen as error:
        raise Problem(HTTPStatus.CONFLICT, str(error)) from error


class Pages:
    """The templates of the package; what is put into them is escaped."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=PackageLoader("dicom_node.web", _TEMPLATES),
            autoescape=select_autoescape(default=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)

    def page(self, name: str, *, status: int = 200, **content: object) -> HTMLResponse:
        """Return a page."""
        return HTMLResponse(self._templates.get_template(f"{name}.html").render(content), status_code=status)

    def text(self, name: str) -> str:
        """Return the style sheet or the script of all pages."""
        return self._templates.get_template(name).render()

    def problem(self, request: Request, problem: Problem) -> Response:
        """Return what went wrong: a page for a browser, JSON for a program."""
        if wants_page(request):
            answer: Response = self.page("problem", status=problem.status, detail=problem.detail)
        else:
            answer = JSONResponse({"detail": problem.detail}, status_code=problem.status)
        answer.headers.update(problem.headers)
        return answer


def wants_page(request: Request) -> bool:
    """Return whether a browser asks for a page."""
    return "text/html" in request.headers.get("accept", "")
