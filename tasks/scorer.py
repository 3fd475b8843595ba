"""A reward model from elsewhere as a Prefect task: one of the artifact root is taken, others are converted once."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from models.artifacts import Checkpoint, Kind, Manifest
from models.errors import InputError
from models.rewards import Reward
from tasks.child_main import ChildOptions
from tasks.converting import converting
from tasks.core.entry import convert_scorer
from tasks.execution import Execution
from tasks.making import find_or_make
from tasks.remote.opening import open_store
from tasks.scorer_check import find_scorer, scorer_checkpoint
from tasks.stage import LIGHT_RETRIES, was_killed
from tasks.store import ArtifactStore
from tasks.telling import Teller


@task(
    name="prepare-reward-model",
    cache_policy=NO_CACHE,
    retries=LIGHT_RETRIES,
    retry_condition_fn=was_killed,
)
def prepare_scorer(reward: Reward, execution: Execution) -> Checkpoint:
    """Give the reward model that a reward names, whole and in the artifact root.

    Raises:
        InputError: there is none of that name, or it is no reward model.
        OutOfMemory, Killed, StageError: the conversion failed.
    """
    found = find_scorer(reward, open_store(execution.settings), execution.precision)
    path = found.checkpoint.path

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        wanted, source = found.wanted, found.source
        if wanted is None or source is None:
            raise InputError(
                f"reward model {path.name} was pruned and cannot be rebuilt; run its recipe again to make it anew"
            )
        return converting(wanted, source, convert_scorer, source, execution)(store, teller, options)

    kind: Kind = "base" if found.wanted or path.parent.name == "base" else "checkpoint"
    return find_or_make(kind, path.name, execution, make, scorer_checkpoint, f"scorer-{found.checkpoint.id}")
