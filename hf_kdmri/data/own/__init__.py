"""A user's own image classification set: found, opened, checked, split, or streamed."""
