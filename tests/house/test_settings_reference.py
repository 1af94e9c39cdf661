"""docs/settings.md is what the settings say."""

import pytest
from pydantic_core import PydanticUndefined

from dicom_node.settings import Peer, Section, Settings
from tests.house.settings_reference import PAGE, render

SECTIONS = [field.annotation for field in Settings.model_fields.values() if field.default != ()] + [Peer]


def test_the_settings_reference_is_what_the_models_say() -> None:
    """If not: `make docs`."""
    assert PAGE.read_text() == render()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_says_what_it_means(section: type[Section]) -> None:
    """A docstring under each field is where the reference comes from."""
    silent = [name for name, field in section.model_fields.items() if not field.description]

    assert not silent


def test_only_a_peer_has_settings_without_a_default() -> None:
    """The node starts without a file."""
    required = {
        section.__name__
        for section in SECTIONS
        if any(field.default is PydanticUndefined for field in section.model_fields.values())
    }

    assert required == {"Peer"}
