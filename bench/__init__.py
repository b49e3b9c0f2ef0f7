"""Side-by-side timings: what the course builds, beside what everyone uses. `python -m bench --help` says how."""
