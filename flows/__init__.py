"""What runs when: settings, the job loop, Prefect flows and tasks, report, command line."""
