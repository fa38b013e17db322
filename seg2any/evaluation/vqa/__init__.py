"""Questions about regions, answered by a vision-language model."""
