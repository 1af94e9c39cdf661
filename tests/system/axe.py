"""axe-core, which says what of a page a person with a screen reader, or with a keyboard alone, cannot use."""

import tarfile
from functools import cache

from playwright.sync_api import Page

from tests.system.npm import published

VERSION = "4.14.1"
_INTEGRITY = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
_MEMBER = "package/axe.min.js"


def violations(page: Page) -> list[str]:
    """Return what axe-core's rules find wrong with the page as it is, each with the elements that break it."""
    page.evaluate(_source())
    found = page.evaluate("axe.run().then((one) => one.violations)")
    return [f"{rule['id']}: {rule['help']}: {[node['target'] for node in rule['nodes']]}" for rule in found]


@cache
def _source() -> str:
    with tarfile.open(published("axe-core", VERSION, _INTEGRITY)) as archive:
        file = archive.extractfile(_MEMBER)
        assert file is not None
        return file.read().decode()
