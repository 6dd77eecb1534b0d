"""Many experiments: grid, plan, execution, cells on disk, effects."""
