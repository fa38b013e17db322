"""Turn layouts into conditions and noise into images, with any `Base`."""
