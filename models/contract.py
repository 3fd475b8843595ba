"""The base of every contract: frozen, strict about keys, and helpful about typing errors."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

ADVANCED: dict[str, Any] = {"advanced": True}
"""`json_schema_extra` of a field that few people change: it comes behind the others in the form."""
_BEHIND = 1000


def _number_fields(schema: dict[str, Any]) -> None:
    """Give each property its place in the Prefect form: the order of declaration, advanced ones behind the others."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position + _BEHIND * field.pop("advanced", False)


class Contract(BaseModel):
    """An immutable, fully typed value. Unknown keys are errors that name the nearest known key."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        json_schema_extra=_number_fields,
    )

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_key(cls, data: Any) -> Any:
        unknown = [key for key in data if key not in cls.model_fields] if isinstance(data, Mapping) else []
        if unknown:
            raise PydanticCustomError(
                "unknown_key", "{problem}", {"problem": "; ".join(cls._unknown_key(str(key)) for key in unknown)}
            )
        return data

    @classmethod
    def _unknown_key(cls, key: str) -> str:
        near = get_close_matches(key, cls.model_fields, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(cls.model_fields)}"
        return f"unknown key '{key}'; {remedy}"
