"""A project: params.yaml, recipes, the plan of each round, dvc.yaml, the graph of stages, and running one of them."""
