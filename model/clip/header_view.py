"""What a header says about the view of a loop: View Code Sequence (PS3.3 C.8.5.6), by CID 12226 of PS3.16."""

from model.tasks import View

# SNOMED CT, and SNOMED RT as older carts write it; of the other views of the heart the header says only: another one.
_VIEWS = {
    View.A4C: ("399214001", "G-A19C"),
    View.A2C: ("399232001", "G-A19B"),
    View.PLAX: ("399139001", "G-0396"),
    View.PSAX: (
        "399306005", "399036006", "399271003", "399239005", "399371001",  # and at named levels
        "G-0397", "G-039A", "G-039B", "G-0398", "G-0399",
    ),
    View.OTHER: (
        "399339008", "G-0395",  # apical long axis
        "399310008", "399200001", "443609003", "443499004", "443160001", "443500008", "443640005", "443100003",
        "399106004", "399145009", "443562002", "443163004", "443162009",
        "443083000", "443082005", "398998003", "399195005", "443698002",
        "G-039E", "G-039F", "G-057E", "G-057B", "G-0579", "G-057C", "R-40B0A", "R-40AFF",
        "G-03A0", "G-03A1", "G-057D", "R-40B01", "R-40B00",
        "G-0578", "G-0577", "G-039C", "G-039D", "R-40B0E",
        "130681", "130682",  # four chambers, turned to the right ventricle
    ),
}  # fmt: skip
_BY_CODE = {code: view for view, codes in _VIEWS.items() for code in codes}


def header_view(view_code: str | None) -> View | None:
    """Return the view of a code value; None: there is none, or it is not known."""
    return _BY_CODE.get((view_code or "").strip())
