"""What people look at: SQL over all rounds, reports, exports, MLflow, the doctor."""
