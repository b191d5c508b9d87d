"""Read-only questions to the index: what looks like this?"""
