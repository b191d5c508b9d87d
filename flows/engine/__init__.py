"""The job inside Prefect's engine: tasks, artifacts, tags, hooks, and where tasks run."""
