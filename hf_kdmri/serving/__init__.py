"""`kdmri serve`: a model behind HTTP, as the Hub's inference client speaks it (extra `serve`)."""
