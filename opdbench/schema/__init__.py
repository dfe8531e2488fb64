"""What is written to disk. Pydantic models only: nothing here imports torch, a method or a task."""
