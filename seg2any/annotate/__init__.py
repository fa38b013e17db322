"""Turn photos into records of SACap: filters, masks, captions, and the engines that run them."""
