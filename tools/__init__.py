"""Programs that developers and CI run; nothing here is installed with the product."""
