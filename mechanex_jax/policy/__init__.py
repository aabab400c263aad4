"""`mx.policy`: candidates, verifiers, retries, schedules and tuning around generation."""
