"""Laboratory: everything with an effect on the world, around experiments that have none.

- `cli`: `Experiment`, the five things that make one, and `main`, which runs it from arguments to exit code.
- `config`: `ExperimentConfig` and the types of its fields (`Rate`, `Count`, `Seeds`, `AxisOf[...]`, `OneOf`).
- `plots`: one style for all figures; bands over seeds, dashed theory, bounds.

These three are what an experiment imports, by name. The rest serves `main`: `flags` and `toml` read, `refusals`
words what is wrong, `environment` sets JAX up, `session` runs studies and keeps every finished batch through
`store` and `files`, `progress` tells how far it is, `report` and `prose` write the page and `publish` the part for
the notebook.
"""
