"""Licences: families, what does not go together, and nothing that is better than what was said."""

import pytest

from models.publishing import Family
from tasks.publishing.licences import claim, combine, spdx_identifier


@pytest.mark.parametrize(
    ("said", "family"),
    [
        ("apache-2.0", "permissive"),
        ("Apache-2.0", "permissive"),
        ("MIT", "permissive"),
        ("CC0-1.0", "permissive"),
        ("odc-by", "permissive"),
        ("ODC-By-1.0", "permissive"),
        ("cc-by-sa-4.0", "share-alike"),
        ("GPL-3.0-or-later", "copyleft"),
        ("AGPL-3.0-only", "copyleft"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "copyleft"),
        ("llama3.2", "community"),
        ("openrail", "community"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("cc-by-nd-4.0", "no-derivatives"),
        ("CC-BY-NC-ND-4.0", "no-derivatives"),
        ("MIT OR GPL-3.0-only", "permissive"),
        ("MIT AND GPL-3.0-only", "copyleft"),
        ("our own terms", "not classified"),
        ("other", "not classified"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_families(said: str | None, family: Family) -> None:
    assert claim("something", said).family == family


@pytest.mark.parametrize(
    ("said", "license", "name"),
    [
        (["apache-2.0", "mit"], "apache-2.0", ""),
        (["mit", "cc-by-sa-4.0"], "cc-by-sa-4.0", ""),
        (["cc-by-sa-4.0", "GPL-3.0-only"], "gpl-3.0", ""),
        (["gpl-3.0", "llama3.2"], "llama3.2", ""),
        (["cc-by-nc-4.0", "llama3.2"], "cc-by-nc-4.0", ""),
        (["cc-by-nc-4.0", "cc-by-nd-4.0"], "cc-by-nd-4.0", ""),
        (["cc-by-nd-4.0", "our own terms"], "other", "our own terms"),
        (["our own terms", None, "mit"], "other", "unknown"),
        ([], "other", "unknown"),
    ],
)
def test_the_most_restrictive_names_the_whole(said: list[str | None], license: str, name: str) -> None:
    whole = combine(claim(f"source {number}", each) for number, each in enumerate(said))
    assert (whole.license, whole.license_name) == (license, name)


@pytest.mark.parametrize(
    ("said", "cautions"),
    [
        (["mit", "apache-2.0"], []),
        (["cc-by-sa-4.0", "cc-by-sa-4.0"], []),
        (["cc-by-sa-4.0", "gpl-3.0"], ["each ask that what is made from them be under the same licence"]),
        (["cc-by-sa-4.0", "cc-by-nc-4.0"], ["allows no commercial use", "without further restrictions"]),
        (["cc-by-nc-sa-4.0", "cc-by-sa-4.0"], ["allows no commercial use", "each ask", "without further restrictions"]),
        (["llama3.2"], ["has terms of its own"]),
        (["cc-by-nd-4.0"], ["allows no derived works"]),
        (["mit", None], ["of source 1 is not known"]),
        (["our own terms"], ["(our own terms) is not in this pipeline's table"]),
    ],
)
def test_what_restricts_and_what_does_not_go_together_is_named(said: list[str | None], cautions: list[str]) -> None:
    found = combine(claim(f"source {number}", each) for number, each in enumerate(said)).cautions
    assert len(found) == len(cautions), found
    assert all(any(caution in line for line in found) for caution in cautions), found


@pytest.mark.parametrize(
    ("said", "spdx"),
    [("apache-2.0", "Apache-2.0"), ("mit or gpl-3.0-only", "MIT OR GPL-3.0-only"), ("llama3.2", None), ("x y", None)],
)
def test_spelling_of_spdx(said: str, spdx: str | None) -> None:
    assert spdx_identifier(said) == spdx
