"""Jinja templates of the model cards; `hf_kdmri.hub.model_card` fills them."""
