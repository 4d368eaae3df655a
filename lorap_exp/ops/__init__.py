"""Pure tensor mathematics: tensors in, tensors out; imports nothing else of the project."""
