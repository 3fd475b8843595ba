"""What the licences of base model and data say together, told conservatively. It is no legal advice, and says so.

Whether a trained model is a derived work of its data is an open question; here it is taken for one.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations, product
from typing import Any, get_args

from models.publishing import Family, LicenseClaim, Licensing

_TABLE: dict[Family, str] = {
    "permissive": "apache-2.0 mit isc zlib bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 ncsa postgresql "
    "unlicense wtfpl cc0-1.0 pddl cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 odc-by cdla-permissive-1.0 "
    "cdla-permissive-2.0 afl-3.0 ecl-2.0 artistic-2.0 ms-pl etalab-2.0",
    "share-alike": "cc-by-sa-3.0 cc-by-sa-4.0 odbl cdla-sharing-1.0",
    "copyleft": "gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gfdl "
    "osl-3.0",
    "community": "openrail openrail++ creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma",
    "non-commercial": "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "fair-noncommercial-research-license intel-research h-research apple-amlr",
    "no-derivatives": "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0",
}
"""Licences by the hub's names for them, which are SPDX identifiers in lower case wherever there is one."""
_FAMILY: dict[str, Family] = {name: family for family, names in _TABLE.items() for name in names.split()}
_RANK: dict[Family, int] = {family: rank for rank, family in enumerate(get_args(Family))}
_HUB_NAMES = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl"}
_ADVICE: dict[Family, str] = {
    "community": "has terms of its own, such as a use policy, that go along with the model; read it",
    "non-commercial": "allows no commercial use",
    "no-derivatives": "allows no derived works to be shared, which a trained model may be",
    "not classified": "is not in this pipeline's table of licences; read it before you share the model",
    "unknown": "is not known; find out before you share the model",
}


def claim(what: str, license: str | None) -> LicenseClaim:
    """What one source's licence asks for."""
    return LicenseClaim(what=what, license=license or "", family=_family(_decisive(license)) if license else "unknown")


def combine(claims: Iterable[LicenseClaim]) -> Licensing:
    """What several sources' licences say together; the first of the most restrictive ones names the whole."""
    claims = tuple(claims)
    strictest = max(claims, key=lambda one: _RANK[one.family], default=claim("", None))
    name = _decisive(strictest.license)
    known = name in _FAMILY
    return Licensing(
        license=name if known else "other",
        license_name="" if known else strictest.license or "unknown",
        claims=claims,
        cautions=(*_cautions(claims), *_conflicts(claims)),
    )


def spdx_identifier(license: str) -> str | None:
    """The expression in SPDX's own spelling; none where it holds a word that SPDX does not know."""
    from license_expression import ExpressionError

    try:
        return str(_spdx().parse(license, validate=True))
    except ExpressionError:
        return None


@cache
def _spdx() -> Any:
    """The parser of SPDX expressions, whose list of licences takes a moment to read."""
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def _cautions(claims: Iterable[LicenseClaim]) -> Iterator[str]:
    for family, advice in _ADVICE.items():
        for one in claims:
            if one.family == family:
                yield f"The licence of {one.what}{f' ({one.license})' if one.license else ''} {advice}."


def _conflicts(claims: tuple[LicenseClaim, ...]) -> Iterator[str]:
    """Pairs that ask for different things of what is made from both."""
    by_license = {_decisive(one.license): one for one in reversed(claims) if _is_reciprocal(one)}
    reciprocal = [*by_license.values()][::-1]
    for one, other in combinations(reciprocal, 2):
        yield f"{_named(one)} and {_named(other)} each ask that what is made from them be under the same licence."
    for one, other in product(reciprocal, claims):
        restricts = other.family in ("community", "non-commercial", "no-derivatives")
        if restricts and _decisive(other.license) != _decisive(one.license):
            yield f"{_named(one)} asks for the same licence without further restrictions, {_named(other)} adds some."


def _named(one: LicenseClaim) -> str:
    return f"{one.license} ({one.what})"


def _is_reciprocal(one: LicenseClaim) -> bool:
    return one.family in ("share-alike", "copyleft") or "-sa-" in _decisive(one.license)


def _family(name: str) -> Family:
    return _FAMILY.get(name, "not classified")


def _decisive(license: str) -> str:
    """The one licence that decides what an expression asks for, by the hub's name where it has one."""
    from license_expression import ExpressionError

    try:
        return _decisive_term(_spdx().parse(license))
    except ExpressionError:
        return _hub_name(license)


def _decisive_term(expression: object) -> str:
    """Of alternatives the least restrictive one may be chosen; of licences that all hold the most restrictive rules."""
    from license_expression import BaseSymbol, LicenseSymbol

    if not isinstance(expression, BaseSymbol):
        arguments = getattr(expression, "args", ())
        terms = [_decisive_term(argument) for argument in arguments]
        choose = min if type(expression).__name__ == "OR" else max
        return choose(terms, key=lambda term: _RANK[_family(term)], default="")
    symbol = getattr(expression, "license_symbol", expression)  # the licence of one with an exception
    return _hub_name(symbol.key) if isinstance(symbol, LicenseSymbol) else _hub_name(str(expression))


def _hub_name(name: str) -> str:
    name = name.strip().lower()
    short = name.removesuffix("-only").removesuffix("-or-later").removesuffix("+")
    return name if name in _FAMILY else _HUB_NAMES.get(short, short)
