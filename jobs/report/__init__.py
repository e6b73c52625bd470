"""qkvmill report: an export as one HTML page to look at."""
