"""The one road from images to cached vectors."""
