"""Types and mechanisms that everything else may use: errors, units, clock, events, pipeline, durable files."""
