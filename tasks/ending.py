"""Ends of flow runs that are no failures and yet more than `Completed`: a name and a sentence in the Prefect UI."""

from typing import TypeVar

from prefect.states import Completed

Result = TypeVar("Result")


def ended(name: str, message: str, result: Result) -> Result:
    """What a flow returns to end as a kind of Completed with a name of its own; its caller gets `result`."""
    return Completed(name=name, message=message, data=result)  # type: ignore[return-value]
