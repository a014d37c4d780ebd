"""What every part of the library may use and what uses none of them: checks, files, seeds, sharding, configuration."""
