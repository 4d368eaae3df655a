"""Settings of a small LLM-Streamline job, for several test files."""

T = "method.stages.layers.training"
FAST = [
    "method=streamline",
    "model.random.blocks=6",
    "ratio=0.3",
    f"{T}.text=embedded",
    f"{T}.samples=24",
    f"{T}.validation_samples=4",
    f"{T}.length=32",
    f"{T}.batch_size=4",
    f"{T}.micro_batch=2",
    f"{T}.evaluate_every=2",
    "evaluation.zero_shot=null",
]
