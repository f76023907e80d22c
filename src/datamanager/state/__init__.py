"""History, schedules, alerts and audit: what is remembered besides the backups themselves."""
