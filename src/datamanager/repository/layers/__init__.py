"""What each backup learned: files and where their pages are."""
