"""Order and wiring: one flow per DVC stage, and the pipeline that drives the graph."""

from flows.environment import prepare
from flows.stage_host import hand_over

prepare()  # before anything imports prefect, torch or datasets
hand_over()  # a `raft stage` that a stage host runs ends here
