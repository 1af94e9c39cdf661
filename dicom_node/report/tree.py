"""Content items, one function a value type: a relationship, a concept, a value, and what hangs below.

highdicom makes the items; its templates are not used where they are wrong for this report (containers are written
CONTINUOUS, uncertainties in unit 1, methods and algorithms at the group instead of the number).
"""

import re
from collections.abc import Sequence

import numpy as np
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    ScoordContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Dataset
from pydicom.sequence import Sequence as ItemSequence

CONTAINS = RelationshipTypeValues.CONTAINS
MODIFIES = RelationshipTypeValues.HAS_CONCEPT_MOD
OBSERVES = RelationshipTypeValues.HAS_OBS_CONTEXT
ACQUIRED = RelationshipTypeValues.HAS_ACQ_CONTEXT
PROPERTY = RelationshipTypeValues.HAS_PROPERTIES
INFERRED = RelationshipTypeValues.INFERRED_FROM
SELECTED = RelationshipTypeValues.SELECTED_FROM

_CONTROL = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]")


def container(
    name: CodedConcept,
    children: Sequence[Dataset],
    relationship: RelationshipTypeValues | None = CONTAINS,
    template: str | None = None,
) -> ContentItem:
    """Return a container of separate items; without a relationship it is the root."""
    item = ContainerContentItem(
        name=name, is_content_continuous=False, template_id=template, relationship_type=relationship
    )
    return _with(item, children)


def code(
    name: CodedConcept, value: CodedConcept, relationship: RelationshipTypeValues, children: Sequence[Dataset] = ()
) -> ContentItem:
    """Return a coded answer."""
    return _with(CodeContentItem(name=name, value=value, relationship_type=relationship), children)


def text(name: CodedConcept, value: str, relationship: RelationshipTypeValues) -> ContentItem:
    """Return a text; reasons quote damaged headers, whose control characters no reader takes (PS3.5 6.1.3)."""
    return TextContentItem(name=name, value=_CONTROL.sub(" ", value), relationship_type=relationship)


def uid(name: CodedConcept, value: str, relationship: RelationshipTypeValues) -> ContentItem:
    """Return a UID."""
    return UIDRefContentItem(name=name, value=value, relationship_type=relationship)


def number(
    name: CodedConcept,
    value: float,
    unit: CodedConcept,
    relationship: RelationshipTypeValues = CONTAINS,
    children: Sequence[Dataset] = (),
) -> ContentItem:
    """Return a number with its unit; `value` is finite and already rounded."""
    item = NumContentItem(name=name, value=float(value), unit=unit, relationship_type=relationship)
    # As a person writes it: 120, not 120.0.
    item.MeasuredValueSequence[0].NumericValue = str(int(value)) if value == int(value) else str(float(value))
    return _with(item, children)


def image(
    name: CodedConcept,
    sop_class_uid: str,
    sop_instance_uid: str,
    relationship: RelationshipTypeValues,
    *,
    frames: Sequence[int] = (),
    children: Sequence[Dataset] = (),
) -> ContentItem:
    """Return a reference to an image, or to some of its frames (counted from 1)."""
    item = ImageContentItem(
        name=name,
        referenced_sop_class_uid=sop_class_uid,
        referenced_sop_instance_uid=sop_instance_uid,
        referenced_frame_numbers=list(frames) or None,
        relationship_type=relationship,
    )
    return _with(item, children)


def composite(
    name: CodedConcept, sop_class_uid: str, sop_instance_uid: str, relationship: RelationshipTypeValues
) -> ContentItem:
    """Return a reference to a document that is no image."""
    return CompositeContentItem(
        name=name,
        referenced_sop_class_uid=sop_class_uid,
        referenced_sop_instance_uid=sop_instance_uid,
        relationship_type=relationship,
    )


def rectangle(name: CodedConcept, box: tuple[int, int, int, int], source: Dataset) -> ContentItem:
    """Return a closed polyline around left, top, right, bottom, pixels from the upper left corner of the image.

    It has a sixth point: five are to OHIF a rectangle that it may measure itself.
    """
    left, top, right, bottom = box
    corners = np.array(
        [[left, top], [(left + right) / 2, top], [right, top], [right, bottom], [left, bottom], [left, top]],
        dtype=np.float32,
    )
    item = ScoordContentItem(name=name, graphic_type="POLYLINE", graphic_data=corners, relationship_type=CONTAINS)
    return _with(item, [source])


def _with(item: ContentItem, children: Sequence[Dataset]) -> ContentItem:
    if children:
        item.ContentSequence = ItemSequence(children)
    return item
