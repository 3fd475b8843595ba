"""Chat templates by name or by file."""

from pathlib import Path

from models.errors import InputError

_SHIPPED = Path(__file__).parent / "templates"


def chat_template(wanted: str) -> str:
    """The text of a shipped chat template or of a Jinja file.

    Raises:
        InputError: there is neither.
    """
    for path in (_SHIPPED / f"{wanted}.jinja", Path(wanted)):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    shipped = ", ".join(path.stem for path in sorted(_SHIPPED.glob("*.jinja")))
    raise InputError(
        f"base_model.chat_template: no file '{wanted}'; name a Jinja file or a shipped template ({shipped})"
    )
