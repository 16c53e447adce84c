"""File reads: pages past or through the page cache, long reads on threads, and checksums."""
