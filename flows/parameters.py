"""Flows whose parameters are checked by this project's contracts: what is wrong with them is told in its own words.

Prefect's server compares parameters with a JSON schema alone. What only a validator of a contract refuses arrives at
the flow, and so does a parameter that it does not have.
"""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Failed
from pydantic import Field, ValidationError, create_model

from models.contract import Contract
from models.errors import InputError, describe_validation

P = ParamSpec("P")
R = TypeVar("R")


def checked_flow(**options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Prefect's `flow` decorator, but for who checks the parameters; the form in the UI is the same."""
    options["on_crashed"] = [*options.get("on_crashed", ()), _tell_of_unknown_parameters]
    return lambda function: _CheckedFlow(function, **options)


def titled(title: str) -> Any:
    """The title of a parameter in the form, in its annotation; its docstring gives the description."""
    return Field(json_schema_extra={"title": title})


class _CheckedFlow(Flow[P, R]):
    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as the function's annotations say.

        Raises:
            InputError: they cannot be that; the message has one line per problem.
        """
        try:
            checked = _contract(self.fn).model_validate(parameters)
        except ValidationError as error:
            raise InputError(describe_validation(error, "")) from None
        return {name: getattr(checked, name) for name in parameters}


def _tell_of_unknown_parameters(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect hook: a run with a parameter that the flow does not have dies before anybody asks; say why."""
    try:
        flow.validate_parameters(flow_run.parameters)
    except InputError as error:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Failed(message=f"Wrong parameters: {error}"), force=True)


def _contract(function: Callable[..., Any]) -> type[Contract]:
    """The parameters of a function as a contract."""
    fields: dict[str, Any] = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
    }
    return create_model("Parameters", __base__=Contract, **fields)
