"""From results to tables and figures. Reads what the engine wrote, never trains."""
