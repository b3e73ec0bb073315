"""How fast a mask grows old while the model is trained."""
