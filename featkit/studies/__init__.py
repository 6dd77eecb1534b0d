"""Studies: preset grids, and analyses of a data set or of networks."""
