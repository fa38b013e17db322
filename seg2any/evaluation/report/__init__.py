"""Results on disk, the pictures beside them, and pages about them."""
