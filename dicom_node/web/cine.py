"""The pictures of a study: loops to play, the attention over them, the report on one page. Nothing is decoded: frames
go out as the worker has written them."""

from bisect import bisect_right
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from dicom_node.cine_file import CineFile, document, open_cine, still
from dicom_node.errors import StoreError, UnreadableCine
from dicom_node.identity import UID
from dicom_node.ledger.contents import Contents, contents, path_of
from dicom_node.ledger.engine import Sessions
from dicom_node.report.findings import PictureKind
from dicom_node.store import InstanceStore, preview_path
from dicom_node.web.answers import Problem, known_uid, refusals
from dicom_node.web.study_view import attention_uid

_JPEG, _PDF = "image/jpeg", "application/pdf"


def cine_routes(*, sessions: Sessions, store: InstanceStore) -> APIRouter:
    """Return the routes of what is looked at."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/studies/{uid}/loops/{sop_uid}/cine.json")
    def cine(uid: str, sop_uid: str) -> dict[str, object]:
        """Say what a player needs: the frames, and under each its attention."""
        study_uid, held = _held(sessions, uid)
        preview = _preview(sessions, store, study_uid, sop_uid)
        attention = _attention(study_uid, held, store, sop_uid)
        at = f"/studies/{study_uid}/loops/{sop_uid}"
        return {
            "width": preview.columns,
            "height": preview.rows,
            "frame_time_ms": preview.frame_time_ms,
            "frames": [f"{at}/frames/{number}.jpg" for number in range(1, preview.num_frames + 1)],
            "attention": []
            if attention is None
            else [f"{at}/attention/{_under(attention, one)}.jpg" for one in preview.source_frames],
        }

    @routes.get("/studies/{uid}/loops/{sop_uid}/frames/{number}.jpg")
    def frame(uid: str, sop_uid: str, number: int) -> Response:
        return _frame(_preview(sessions, store, known_uid(uid), sop_uid), number)

    @routes.get("/studies/{uid}/loops/{sop_uid}/thumbnail.jpg")
    def thumbnail(uid: str, sop_uid: str) -> Response:
        preview = _preview(sessions, store, known_uid(uid), sop_uid)
        return _frame(preview, preview.num_frames // 2 + 1)

    @routes.get("/studies/{uid}/loops/{sop_uid}/attention/{number}.jpg")
    def attention(uid: str, sop_uid: str, number: int) -> Response:
        study_uid, held = _held(sessions, uid)
        _preview(sessions, store, study_uid, sop_uid)  # without one nothing says that only the sector is shown
        found = _attention(study_uid, held, store, sop_uid)
        if found is None:
            raise _nothing()
        return _frame(found, number)

    @routes.get("/studies/{uid}/pictures/{sop_uid}")
    def picture(uid: str, sop_uid: str) -> Response:
        _, held = _held(sessions, uid)
        found = held.picture(sop_uid)
        if found is None or not found.path:
            raise _nothing()
        path = _at_hand(store, found.path)
        try:
            if found.kind == PictureKind.SUMMARY:
                return Response(still(path), media_type=_JPEG)
            if found.kind == PictureKind.SUMMARY_PDF:
                name = {"Content-Disposition": f'attachment; filename="{found.sop_instance_uid}.pdf"'}
                return Response(document(path), media_type=_PDF, headers=name)
        except UnreadableCine as error:
            raise _nothing() from error
        raise _nothing()  # the attention is shown loop by loop

    return routes


def _held(sessions: Sessions, uid: str) -> tuple[UID, Contents]:
    study_uid = known_uid(uid)
    with refusals():
        return study_uid, contents(sessions, study_uid)


def _preview(sessions: Sessions, store: InstanceStore, study_uid: UID, sop_uid: str) -> CineFile:
    path = path_of(sessions, study_uid, sop_uid)  # a player asks for each frame: not for all that the study holds
    if not path:
        raise _nothing()
    try:
        return open_cine(_at_hand(store, preview_path(path)))
    except UnreadableCine as error:
        raise _nothing() from error


def _at_hand(store: InstanceStore, relative: str) -> Path:
    try:
        return store.fetch(relative)
    except StoreError as error:
        raise _nothing() from error


def _attention(study_uid: UID, held: Contents, store: InstanceStore, sop_uid: str) -> CineFile | None:
    if not held.reports:
        return None
    picture = held.picture(attention_uid(study_uid, held.reports[-1], sop_uid))
    if picture is None or not picture.path:
        return None
    try:
        return open_cine(store.fetch(picture.path))
    except (UnreadableCine, StoreError):
        return None


def _under(attention: CineFile, source_frame: int) -> int:
    """Return which frame of the attention shows a frame of the loop, or the one before it; both counted from 1."""
    return max(bisect_right(attention.source_frames, source_frame), 1)


def _frame(file: CineFile, number: int) -> Response:
    try:
        return Response(file.frame(number - 1), media_type=_JPEG)
    except UnreadableCine as error:
        raise _nothing() from error


def _nothing() -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "there is no such picture, or it cannot be shown")
