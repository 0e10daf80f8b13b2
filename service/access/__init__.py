"""Who may use the service, and how much: keys, their scopes and their limits."""
