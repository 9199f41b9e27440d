"""The captioning model: encoder, attention, decoders, search."""
