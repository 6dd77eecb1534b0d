"""The pages of the app; each is a function without arguments."""
