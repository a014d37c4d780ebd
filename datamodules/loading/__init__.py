"""Which rows form which batch on which rank, and loaders that keep their position."""
