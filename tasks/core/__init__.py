"""What everything else stands on: plug-ins, stages, tables, the store, errors. It imports no stage, domain or engine."""
