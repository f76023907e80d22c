"""When jobs run: recurrence, what is due, and the operating system's own schedulers."""
