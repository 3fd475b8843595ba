"""The machine's queue: what each stage that computes, or waits for its turn, takes of the machine."""

from models.contract import Contract


class Share(Contract):
    """What a stage takes of the machine, and what its settings allow all stages together to take."""

    devices: tuple[str, ...]
    """`cpu`, `mps`, or the accelerators among which it takes its places: `cuda:0`, `cuda:1`."""
    places: int = 1
    """Places that it takes, each on another accelerator where there are so many."""
    threads: int
    """CPU threads; 0 on accelerators, where a stage takes places."""
    threads_limit: int
    """CPU threads of all stages on these devices together."""
    stages_limit: int
    """Stages that may compute on these devices at the same time."""


class Ticket(Contract):
    """`<number>.json` in the queue's folder; its process holds a lock on `<number>.lock` as long as it is alive."""

    number: int
    """Place in the order of arrival, from 1."""
    run: str
    """Name of the run."""
    stage: str
    """Name of what is made: `sft-0123456789abcdef`."""
    process: int
    """Id of the process."""
    host: str
    """Name of the machine or container that it is a process of."""
    share: Share
    """What it asks for."""
    computes_on: tuple[str, ...] = ()
    """The devices that it computes on; empty: it waits."""
    since: str
    """Since when it computes or waits: UTC time, ISO 8601."""
