"""Close the loop: masks to image to masks, and image to masks to image."""
