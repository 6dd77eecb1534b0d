"""Images and a backbone to a cache file."""
