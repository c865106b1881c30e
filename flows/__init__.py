"""Order and wiring: one flow per DVC stage, and the pipeline that drives the graph."""

from flows.environment import prepare

prepare()  # before anything imports prefect, torch or datasets
