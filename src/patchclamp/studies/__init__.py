"""Floor 8: published methods run end to end on a model of the user's choice, composed of the floors below."""
