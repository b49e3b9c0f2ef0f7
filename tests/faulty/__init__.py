"""Parts with the mistakes that people make, by module. Each is refused by some check of its component; no check refuses none."""
