"""What a header says about the view of a loop: View Code Sequence (PS3.3 C.8.5.6), by CID 12226 of PS3.16."""

from model.tasks import View

# SNOMED CT, and SNOMED RT as older carts write it; of the other views of the heart the header says only: another one.
_VIEWS = {
    View.A4C: ("399214001", "G-A19C"),
    View.A2C: ("399232001", "G-A19B"),
    View.PLAX: ("399139001", "G-0396"),
    View.PSAX: ("399306005", "G-0397", "399036006", "399271003", "399239005", "399371001"),  # and at named levels
    View.OTHER: (
        "399339008",  # apical long axis
        "399310008", "399200001", "443609003", "443499004", "443160001", "443500008", "443640005", "443100003",
        "399106004", "399145009", "443562002", "443163004", "443162009",
        "443083000", "443082005", "398998003", "399195005", "443698002",
        "130681", "130682",  # four chambers, turned to the right ventricle
    ),
}  # fmt: skip
_BY_CODE = {code: view for view, codes in _VIEWS.items() for code in codes}


def header_view(view_code: str | None) -> View | None:
    """Return the view of a code value; None: there is none, or it is not known."""
    return _BY_CODE.get((view_code or "").strip())
