"""What the processes of `run_ranks` need, imported once by the server that forks them."""

import tests.pipeline.core.rank_work
import tests.stages.rank_work  # noqa: F401
