"""The engine room: what makes the lessons' code fast, robust and at home elsewhere. Every module here is exported from a notebook in `nbs/engine/`."""
