"""The steps of a job, in the order in which `pipeline.run` takes them."""
