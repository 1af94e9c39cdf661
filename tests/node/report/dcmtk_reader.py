"""A report as dcmtk reads it: nothing of the writer, of pydicom or of highdicom has a part in this.

`dsr2xml` gives the content tree and the references, `dcm2xml` the header: the first drops the ideographic and phonetic
groups of names and the fractions of seconds. Whatever the reader does not know is an error, so nothing is overlooked.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.binaries import require_binary

Instance = tuple[str, str, str, str]
"""A reference: Study, Series, SOP Class and SOP Instance UID."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A content item."""

    relationship: str
    """To the item above; empty: the root."""
    kind: str
    """Value type."""
    name: str
    """Value, scheme and meaning of the concept."""
    value: str
    """As text: "57.3 [% UCUM percent]"; "272519000 SCT Absent"; class, UID and frames of an image; a polyline."""
    children: tuple["Item", ...] = ()

    def lines(self, depth: int = 0) -> list[str]:
        """Return the tree as text, a line an item; brothers are sorted, for their order says nothing."""
        own = f"{'  ' * depth}{self.relationship} {self.kind} ({self.name}) = {self.value}"
        blocks = sorted(child.lines(depth + 1) for child in self.children)
        return [own, *(line for block in blocks for line in block)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """All that stands in a report."""

    header: dict[str, str]
    """Every attribute of the data set outside of sequences, by keyword."""
    content: Item
    evidence: list[Instance]
    predecessors: list[Instance]


def read(path: Path) -> Reading:
    """Return what dcmtk finds in a report."""
    report = _xml("dsr2xml", "+Ea", "+Wt", str(path))
    dataset = _xml("dcm2xml", "+M", str(path))
    document = report.find("document")
    (root,) = [one for one in report.findall("document/content/item") if one.get("valType") == "CONTAINER"]
    assert {evidence.get("type") for evidence in report.findall("evidence")} == {"Current Requested Procedure"}
    assert document is not None
    return Reading(
        header={one.get("name", ""): one.text or "" for one in dataset.findall("data-set/element")},
        content=_item(root),
        evidence=sorted(one for evidence in report.findall("evidence") for one in _instances(evidence)),
        predecessors=sorted(one for predecessor in document.findall("predecessor") for one in _instances(predecessor)),
    )


def _xml(*command: str) -> ElementTree.Element:
    program, *arguments = command
    done = subprocess.run([require_binary(program), "-q", *arguments], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return ElementTree.fromstring(done.stdout)


def _instances(parent: ElementTree.Element) -> list[Instance]:
    return [
        (study.get("uid", ""), series.get("uid", ""), *_instance(one))
        for study in parent.findall("study")
        for series in study.findall("series")
        for one in series.findall("value")
    ]


def _instance(value: ElementTree.Element) -> tuple[str, str]:
    sop_class, instance = value.find("sopclass"), value.find("instance")
    assert sop_class is not None
    assert instance is not None
    return sop_class.get("uid", ""), instance.get("uid", "")


def _item(element: ElementTree.Element) -> Item:
    parts = {one.tag: one for one in element if one.tag != "item"}
    assert len(parts) == sum(one.tag != "item" for one in element), "a part of an item stands twice"
    kind = element.get("valType", "")
    item = Item(
        relationship=element.get("relType", ""),
        kind=kind,
        name=_code(parts.pop("concept")),
        value=_value(kind, element, parts),
        children=tuple(_item(one) for one in element if one.tag == "item"),
    )
    assert not parts, f"{item}: {parts}"
    return item


def _value(kind: str, element: ElementTree.Element, parts: dict[str, ElementTree.Element]) -> str:
    """Return the value as text, and take what it stands in out of `parts`."""
    match kind:
        case "CONTAINER":
            template = parts.pop("template", None)
            identifier = "" if template is None else f" {template.get('resource')} {template.get('tid')}"
            return f"{element.get('flag')}{identifier}"
        case "CODE":
            return _code(parts.pop("value"))
        case "TEXT" | "UIDREF":
            return parts.pop("value").text or ""
        case "NUM":
            number = parts.pop("value").text or ""
            exact = parts.pop("float").text or ""
            assert float(number) == float(exact), f"{number} is also {exact}"
            return f"{number} [{_code(parts.pop('unit'))}]"
        case "IMAGE" | "COMPOSITE":
            value = parts.pop("value")
            frames = value.findtext("frames")
            return " ".join((*_instance(value), *([] if frames is None else [f"frames {frames}"])))
        case "SCOORD":
            return f"{element.get('type')} {parts.pop('data').text}"
        case _:
            raise AssertionError(f"a content item of value type {kind}")


def _code(element: ElementTree.Element) -> str:
    assert set(element.keys()) == {"codValue", "codScheme"}, element.attrib
    return f"{element.get('codValue')} {element.get('codScheme')} {element.text}"
