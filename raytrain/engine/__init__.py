"""The engine: the only part of raytrain that imports ray."""
