"""Prefect's own server, and the process that serves the nights."""
