"""Quality on the `shapes` world, whose images are judged by their pixels."""
