"""Order and wiring: one flow per DVC stage, and the pipeline that drives the graph."""
