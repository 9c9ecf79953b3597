"""What the processes of `run_ranks` need, imported once by the server that forks them."""

import minari  # noqa: F401 - the stage imports it when it writes
import torch._dynamo  # noqa: F401 - every optimiser imports it

import tests.pipeline.rank_work
import tests.stages.rank_work  # noqa: F401
